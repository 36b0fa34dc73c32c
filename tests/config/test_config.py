from pathlib import Path

import pytest
import yaml

from gitseg_tf.config import Config, load_config, parse_assignment, save_config

DEFAULTS = Path(__file__).parents[2] / "configs" / "default.yaml"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def complaint(refusal, written):
    """complaint(text, overrides) is the error message for a config file, with the path replaced by FILE."""

    def complain(text, overrides=None):
        path = written(text)
        message = refusal(load_config, path, overrides)
        assert str(path) in message
        return message.replace(str(path), "FILE")

    return complain


def test_default_yaml_matches_the_built_in_defaults():
    assert load_config(DEFAULTS) == load_config()


def test_default_yaml_lists_every_key():
    assert yaml.safe_load(DEFAULTS.read_text()) == Config().model_dump(
        mode="json", exclude={"labels", "channels", "provenance"}
    )


def test_omitted_keys_fall_back_to_defaults(written):
    config = load_config(written("training: {epochs: 3}"))
    assert config.training.epochs == 3 and config.training.ema_decay == load_config().training.ema_decay


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "data:\n# fold: 1\n"])
def test_an_empty_file_or_section_uses_the_defaults(written, text):
    assert load_config(written(text)) == load_config()


def test_an_override_takes_precedence_over_the_file(written):
    config = load_config(written("training: {epochs: 3, ema_decay: 0}"), {"training.epochs": 5})
    assert (config.training.epochs, config.training.ema_decay) == (5, 0)


def test_an_override_can_set_a_key_in_an_empty_section(written):
    assert load_config(written("data:\n"), {"data.fold": 2}).data.fold == 2


def test_a_number_in_exponent_notation_is_a_number(written):
    assert load_config(written("training: {learning_rate: 2e-3}")).training.learning_rate == 0.002


def test_a_saved_config_loads_unchanged(tmp_path):
    overrides = {
        "name": "wide-window",
        "data.input_size": [160, 192],
        "data.path": "/data/gewölbe",
        "provenance.tensorflow": "2",
    }
    config = load_config(None, overrides)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_config_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        load_config().data.fold = 3


def test_an_unknown_section_gets_a_suggestion(complaint):
    assert complaint("trainig: {epochs: 3}") == "FILE: unknown key trainig; did you mean training?"


def test_an_unknown_key_gets_a_suggestion(complaint):
    assert complaint("training: {epoch: 3}") == "FILE: unknown key training.epoch; did you mean training.epochs?"


def test_an_unknown_key_without_a_close_match_lists_the_allowed_keys(complaint):
    message = complaint("augment: {affine: {zzz: 3}}")
    assert message == "FILE: unknown key augment.affine.zzz; allowed are p, rotate, scale, shift"


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("data: {slices: 3}", "data.slices", "data.window_slices"),
        ("augment: {on: host}", "augment.on", "augment.backend"),
        ("training: {loss: {dice: {per: batch}}}", "training.loss.dice.per", "training.loss.dice.reduce_over"),
        ("postprocess: {stomach: {gap_mm: 3}}", "postprocess.stomach.gap_mm", "postprocess.stomach.max_gap_mm"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(complaint, text, old, new):
    assert complaint(text) == f"FILE: {old} was renamed to {new}"


def test_a_loss_without_a_term_is_refused(complaint):
    message = complaint("training: {loss: {bce: {weight: 0}, dice: {weight: 0}, presence: {weight: 1}}}")
    assert message.startswith("FILE: training.loss must have a positive weight for bce, dice or another")


def test_a_non_string_key_is_unknown(complaint):
    assert "FILE: unknown key 1" in complaint("1: 2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("augment: {tilt: {p: 0.5}}", "augment.tilt.p is positive, but only 3-D patches have slices to tilt"),
        ("training: {epochs: many}", "training.epochs must be a valid integer"),
        ("training: {epochs: 1.5}", "training.epochs must be a valid integer"),
        ("training: {epochs: 0}", "training.epochs must be greater than or equal to 1"),
        ("training: {learning_rate: 0}", "training.learning_rate must be greater than 0"),
        ("training: {learning_rate: 11}", "training.learning_rate must be less than or equal to 10"),
        ("training: {weight_decay: .nan}", "training.weight_decay must be a finite number"),
        ("training: {weight_decay: .inf}", "training.weight_decay must be a finite number"),
        ("training: {strategy: mirror}", "training.strategy must be 'auto', 'one_device', 'mirrored'"),
        ("augment: {flip: {p: 1.5}}", "augment.flip.p must be less than or equal to 1"),
        ("model: {backbone: resnet}", "model.backbone must be a registered backbone; did you mean res"),
        ("training: {loss: {top_k: {fraction: 0}}}", "training.loss.top_k.fraction must be greater than 0"),
        (
            "training: {loss: {dice: {reduce_over: organ}}}",
            "training.loss.dice.reduce_over must be 'batch' or 'sample'",
        ),
        ("training: {loss: {focal: {alpha: 1}}}", "training.loss.focal.alpha must be less than 1"),
        ("data: {window_slices: 4}", "data.window_slices must be odd"),
        ("data: {input_size: [100, 128]}", "data: input_size must be two multiples of 32"),
        ("data: {input_size: [0, 128]}", "data: input_size must be two multiples of 32"),
        ("data: {input_size: [128]}", "data.input_size must have more values"),
        ("data: {input_size: [128, 128, 5]}", "data.input_size must have at most 2 items"),
        ("data: {input_size: 128}", "data.input_size must be a valid tuple"),
        ("data: 3", "data must be a section with the keys balance_labels, batch_size"),
        ("name: a/b", "name must match pattern"),
        ("name: ..", "name must match pattern"),
        ("seed: -1", "seed must be greater than or equal to 0"),
    ],
)
def test_an_invalid_value_is_reported_with_its_key_and_the_constraint(complaint, text, expected):
    assert complaint(text).startswith(f"FILE: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [", "FILE, line 1: invalid YAML"),
        ("name: a\ndata:\n\tfold: 1\n", "FILE, line 3: invalid YAML"),
        ("name: 2024-99-99", "FILE: invalid YAML"),
        ("name: \x01", "FILE: invalid YAML"),
        ("- data\n- model\n", "FILE: must be a mapping of config keys, got a list"),
        ("data", "FILE: must be a mapping of config keys, got a str"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused(complaint, text, expected):
    assert complaint(text).startswith(expected)


def test_a_binary_file_is_refused(tmp_path, refusal):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\x89HDF\xff\xfe")
    assert f"{path}: invalid YAML" in refusal(load_config, path)


def test_a_missing_file_is_named(tmp_path, refusal):
    assert f"{tmp_path / 'none.yaml'}: cannot be read" in refusal(load_config, tmp_path / "none.yaml")


def test_a_folder_instead_of_a_file_is_named(tmp_path, refusal):
    assert f"{tmp_path}: cannot be read" in refusal(load_config, tmp_path)


def test_an_invalid_override_is_named_with_its_dotted_key(refusal):
    assert refusal(load_config, None, {"training.epochs": -1}).startswith("config: training.epochs must be")


def test_an_unknown_override_gets_a_suggestion(refusal):
    assert "did you mean training.epochs?" in refusal(load_config, None, {"training.epoch": 3})


def test_an_override_below_a_value_that_is_not_a_section_is_refused(refusal, written):
    assert "data is 3, not a section" in refusal(load_config, written("data: 3"), {"data.fold": 1})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        ("data.input_size=[64, 96]", "data.input_size", [64, 96]),
        ("data.path=null", "data.path", None),
        ("data.path=a=b", "data.path", "a=b"),
        ("training.jit_compile=true", "training.jit_compile", True),
    ],
)
def test_an_assignment_is_a_key_and_a_yaml_value(text, key, value):
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["training.epochs", "=3", "data.input_size=[64", "name=2024-99-99"])
def test_an_invalid_assignment_is_refused(text, refusal):
    assert refusal(parse_assignment, text).startswith(f"{text}: ")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.epochs", True, "must be a valid integer"),
        ("training.epochs", "3", "must be a valid integer"),
        ("augment.flip.p", True, "must be a valid number"),
        ("training.jit_compile", 1, "must be true or false"),
    ],
)
def test_a_value_is_not_converted_to_another_type(key, value, expected, refusal):
    message = refusal(load_config, None, {key: value})
    assert key in message and repr(value) in message and expected in message


def test_a_number_that_yaml_reads_as_text_is_accepted():
    assert load_config(None, {"training.learning_rate": "1e-3"}).training.learning_rate == 0.001


def test_deterministic_and_xla_cannot_be_combined(refusal):
    both = {"training.deterministic": True, "training.jit_compile": True}
    assert "training.deterministic must be false with training.jit_compile" in refusal(load_config, None, both)


def test_ema_and_swa_cannot_be_combined(refusal):
    assert "training.ema_decay must be 0 with training.swa_epochs" in refusal(
        load_config, None, {"training.swa_epochs": 2}
    )
    assert "must be at most training.epochs (3)" in refusal(
        load_config, None, {"training.swa_epochs": 4, "training.ema_decay": 0}
    )
    assert load_config(None, {"training.swa_epochs": 2, "training.ema_decay": 0}).training.swa_epochs == 2
