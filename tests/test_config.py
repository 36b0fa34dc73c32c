from pathlib import Path

import pytest
import yaml

from gitseg_tf.config import Config, load_config, parse_assignment, save_config

DEFAULTS = Path(__file__).parents[1] / "configs" / "default.yaml"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def complaint(refusal, written):
    """complaint(text, overrides) is what is said of a config file, without the file's name."""

    def complain(text, overrides=None):
        path = written(text)
        said = refusal(load_config, path, overrides)
        assert str(path) in said
        return said.replace(str(path), "FILE")

    return complain


def test_the_default_file_holds_the_embedded_defaults():
    assert load_config(DEFAULTS) == load_config()


def test_the_default_file_spells_out_every_key():
    text = DEFAULTS.read_text().replace("  on:", '  "on":')  # PyYAML's own loader takes on for true
    assert yaml.safe_load(text) == Config().model_dump(mode="json", exclude={"provenance"})


def test_what_a_file_leaves_out_has_its_default(written):
    config = load_config(written("training: {epochs: 3}"))
    assert config.training.epochs == 3 and config.training.ema == load_config().training.ema


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "data:\n# fold: 1\n"])
def test_an_empty_file_or_section_is_all_defaults(written, text):
    assert load_config(written(text)) == load_config()


def test_an_override_wins_over_the_file(written):
    config = load_config(written("training: {epochs: 3, ema: 0}"), {"training.epochs": 5})
    assert (config.training.epochs, config.training.ema) == (5, 0)


def test_an_override_reaches_into_a_section_the_file_leaves_empty(written):
    assert load_config(written("data:\n"), {"data.fold": 2}).data.fold == 2


def test_a_number_in_exponent_notation_is_a_number(written):
    assert load_config(written("training: {learning_rate: 2e-3}")).training.learning_rate == 0.002


def test_saved_and_loaded_is_the_same_experiment(tmp_path):
    overrides = {
        "name": "wide-window",
        "data.size": [160, 192],
        "data.path": "/data/gewölbe",
        "provenance.tensorflow": "2",
    }
    config = load_config(None, overrides)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_config_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        load_config().data.fold = 3


def test_an_unknown_section_is_named_with_the_likely_one(complaint):
    assert complaint("trainig: {epochs: 3}") == "FILE: trainig is no known key; did you mean training?"


def test_an_unknown_key_is_named_with_the_likely_one(complaint):
    assert complaint("training: {epoch: 3}") == "FILE: training.epoch is no known key; did you mean training.epochs?"


def test_an_unknown_key_like_no_other_is_told_what_is_allowed(complaint):
    said = complaint("augment: {affine: {zzz: 3}}")
    assert said == "FILE: augment.affine.zzz is no known key; allowed are p, rotate, scale, shift"


@pytest.mark.parametrize("term", ["bce", "dice"])
def test_a_key_that_has_moved_is_told_where(complaint, term):
    said = complaint(f"training: {{{term}_weight: 0.5}}")
    assert said == f"FILE: training.{term}_weight is no known key; it is called training.loss.{term}.weight"
    assert load_config(None, {f"training.loss.{term}.weight": 0.5}).training.loss.terms[term].weight == 0.5


def test_a_loss_without_a_term_is_refused(complaint):
    said = complaint("training: {loss: {bce: {weight: 0}, dice: {weight: 0}, presence: {weight: 1}}}")
    assert (
        said.startswith("FILE: training.loss is ") and "it must have a weight above 0 for bce, dice or another" in said
    )


def test_a_key_that_is_no_text_is_unknown(complaint):
    assert "FILE: 1 is no known key" in complaint("1: 2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {epochs: many}", "training.epochs is 'many': it must be a valid integer"),
        ("training: {epochs: 1.5}", "training.epochs is 1.5: it must be a valid integer"),
        ("training: {epochs: 0}", "training.epochs is 0: it must be greater than or equal to 1"),
        ("training: {learning_rate: 0}", "training.learning_rate is 0: it must be greater than 0"),
        ("training: {learning_rate: 11}", "training.learning_rate is 11: it must be less than or equal to 10"),
        ("training: {weight_decay: .nan}", "training.weight_decay is nan: it must be a finite number"),
        ("training: {weight_decay: .inf}", "training.weight_decay is inf: it must be a finite number"),
        ("training: {strategy: mirror}", "training.strategy is 'mirror': it must be 'auto', 'one_device', 'mirrored'"),
        ("augment: {flip: {p: 1.5}}", "augment.flip.p is 1.5: it must be less than or equal to 1"),
        ("model: {backbone: resnet}", "model.backbone is 'resnet': it must be 'plain', 'resnet18', 'resnet34', 'res"),
        ("training: {loss: {top_k: {share: 0}}}", "training.loss.top_k.share is 0: it must be greater than 0"),
        ("training: {loss: {dice: {per: organ}}}", "training.loss.dice.per is 'organ': it must be 'batch' or 'sample'"),
        ("training: {loss: {focal: {alpha: 1}}}", "training.loss.focal.alpha is 1: it must be less than 1"),
        ("data: {slices: 4}", "data.slices is 4: it must be odd"),
        ("data: {size: [100, 128]}", "data.size is [100, 128]: it must be two multiples of 32"),
        ("data: {size: [0, 128]}", "data.size is [0, 128]: it must be two multiples of 32"),
        ("data: {size: [128]}", "data.size is [128]: it must have more values"),
        ("data: {size: [128, 128, 5]}", "data.size is [128, 128, 5]: it must have at most 2 items"),
        ("data: {size: 128}", "data.size is 128: it must be a valid tuple"),
        ("data: 3", "data is 3: it must be a section with the keys balance_organs, batch_size"),
        ("name: a/b", "name is 'a/b': it must match pattern"),
        ("name: ..", "name is '..': it must match pattern"),
        ("seed: -1", "seed is -1: it must be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_told_with_its_field_and_what_is_allowed(complaint, text, said):
    assert complaint(text).startswith(f"FILE: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: [", "FILE, line 1: is no YAML"),
        ("name: a\ndata:\n\tfold: 1\n", "FILE, line 3: is no YAML"),
        ("name: 2024-99-99", "FILE: is no YAML"),
        ("name: \x01", "FILE: is no YAML"),
        ("- data\n- model\n", "FILE: holds a list, not a mapping"),
        ("data", "FILE: holds a str, not a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused(complaint, text, said):
    assert complaint(text).startswith(said)


def test_a_file_that_is_no_text_is_refused(tmp_path, refusal):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\x89HDF\xff\xfe")
    assert f"{path}: is no YAML" in refusal(load_config, path)


def test_a_file_that_is_not_there_is_named(tmp_path, refusal):
    assert f"{tmp_path / 'none.yaml'}: cannot be read" in refusal(load_config, tmp_path / "none.yaml")


def test_a_folder_instead_of_a_file_is_named(tmp_path, refusal):
    assert f"{tmp_path}: cannot be read" in refusal(load_config, tmp_path)


def test_a_wrong_override_is_named_with_its_dotted_key(refusal):
    assert refusal(load_config, None, {"training.epochs": -1}).startswith("config: training.epochs is -1: it must be")


def test_an_unknown_override_is_named_with_the_likely_one(refusal):
    assert "did you mean training.epochs?" in refusal(load_config, None, {"training.epoch": 3})


def test_an_override_into_something_that_is_no_section_is_refused(refusal, written):
    assert "data is 3, no section" in refusal(load_config, written("data: 3"), {"data.fold": 1})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        ("data.size=[64, 96]", "data.size", [64, 96]),
        ("data.path=null", "data.path", None),
        ("data.path=a=b", "data.path", "a=b"),
        ("training.jit_compile=true", "training.jit_compile", True),
    ],
)
def test_an_assignment_is_a_key_and_a_yaml_value(text, key, value):
    assert parse_assignment(text) == (key, value)


@pytest.mark.parametrize("text", ["training.epochs", "=3", "data.size=[64", "name=2024-99-99"])
def test_what_is_no_assignment_is_refused(text, refusal):
    assert refusal(parse_assignment, text).startswith(f"--set {text}: ")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.epochs", True, "must be a valid integer"),
        ("training.epochs", "3", "must be a valid integer"),
        ("augment.flip.p", True, "must be a valid number"),
        ("training.jit_compile", 1, "must be true or false"),
    ],
)
def test_a_value_is_not_converted_to_another_type(key, value, says, refusal):
    said = refusal(load_config, None, {key: value})
    assert key in said and repr(value) in said and says in said


def test_a_number_that_yaml_reads_as_text_is_taken():
    assert load_config(None, {"training.learning_rate": "1e-3"}).training.learning_rate == 0.001


def test_on_off_yes_and_no_are_words_and_true_and_false_are_not(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("augment: {on: accelerator}\ntraining: {jit_compile: true}\nname: no\n")
    config = load_config(path)
    assert (config.augment.on, config.training.jit_compile, config.name) == ("accelerator", True, "no")
    save_config(config, path)
    assert load_config(path) == config


def test_weights_have_one_average(refusal):
    assert "training.ema is 0.99: it must be 0 with training.swa" in refusal(load_config, None, {"training.swa": 2})
    assert "must be training.epochs (3) at most" in refusal(load_config, None, {"training.swa": 4, "training.ema": 0})
    assert load_config(None, {"training.swa": 2, "training.ema": 0}).training.swa == 2
