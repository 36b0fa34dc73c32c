"""The rules of a plan, on fingerprints and measurements worked by hand; without TensorFlow."""

from dataclasses import replace

import pytest

from gitseg_tf.config import load_config
from gitseg_tf.core.trees import parse_yaml
from gitseg_tf.labels import LabelSet
from gitseg_tf.planning.candidates import Measurement, candidates, on_grid, to_measure
from gitseg_tf.planning.choices import whole_volume_patch
from gitseg_tf.planning.fingerprint import ChannelFingerprint, Fingerprint, LabelFingerprint
from gitseg_tf.planning.machine import Machine
from gitseg_tf.planning.rules import decide, ema_decay
from gitseg_tf.planning.writer import plan_text

MACHINE = Machine("a processor", 2, False, 16.0)
MR = ChannelFingerprint("image", False, (10.0, 900.0), 3.0, (50.0, 700.0))
CT = ChannelFingerprint("image", True, (-1000.0, 400.0), 1.1, (-87.0, 251.0))


def label(name, **changes):
    return replace(LabelFingerprint(name, 15, 15, (100.0, 200.0, 400.0), 3, 0.001, 0.4), **changes)


def abdomen(**changes):
    """15 MR scans of 144 slices, 3 mm apart, 12 for training; the body is 390 x 270 mm."""
    facts = Fingerprint(
        source="abc", scans=15, measured=15, patients=5,
        shape=(144.0, 266.0, 266.0), least_shape=(144.0, 266.0, 266.0), most_shape=(144.0, 360.0, 310.0),
        spacing=(3.0, 1.5, 1.5), least_spacing=(3.0, 1.5, 1.5), most_spacing=(3.0, 1.5, 1.5),
        body_mm=(270.0, 390.0), body_aspect=0.7, neighbors=1.0,
        training=((144, 90),) * 12, held_out=(144,) * 3, channels=(MR,),
        labels=(label("large_bowel"), label("small_bowel"), label("stomach", components=1)),
    )  # fmt: skip
    return replace(facts, **changes)


def hippocampus(**changes):
    shape = (36.0, 50.0, 35.0)
    return abdomen(
        shape=shape, least_shape=(24.0, 40.0, 31.0), most_shape=(47.0, 59.0, 43.0),
        spacing=(1.0, 1.0, 1.0), least_spacing=(1.0, 1.0, 1.0), most_spacing=(1.0, 1.0, 1.0),
        body_mm=(50.0, 35.0), training=((36, 28),) * 166, held_out=(36,) * 42, scans=208,
        labels=(label("anterior", components=1), label("posterior", components=1)), **changes,
    )  # fmt: skip


def cost(step=1.0, **changes):
    made = Measurement(
        step_seconds=step, validation_seconds=step / 3, start_seconds=8.0, slice_seconds=0.001, base_gib=0.8,
        peak_gib=1.6, windows=1440, held_out_windows=432, steps=6, date="2026-01-02",
    )  # fmt: skip
    return replace(made, **changes)


def measured(facts, step_of, **changes):
    """Measure the candidates that a probe would, with seconds per step from a function of their keys."""
    return {one.name: cost(step_of(one), **changes) for one in to_measure(candidates(facts, MACHINE))}


def by_pixels(seconds):
    """Seconds per step, in proportion to the pixels of the input; `seconds` at 192 x 192."""
    return lambda one: seconds * one.size / 192**2


def plan_of(facts, step_of=None, minutes=20.0, memory=12.0, **changes):
    step_of = step_of or by_pixels(0.55)
    return decide(facts, MACHINE, measured(facts, step_of, **changes), minutes=minutes, memory_gib=memory)


def keys(plan):
    return {choice.key: choice.value for choice in plan.choices}


def test_an_abdominal_mr_cohort_gets_the_recipe_that_was_found_by_hand():
    plan = plan_of(abdomen())
    assert plan["model.architecture"] == "unet" and plan["model.backbone"] == "plain"
    assert plan["data.window_slices"] == 5 and plan["data.window_stride"] == 2  # 6 mm, as configs/accuracy.yaml
    assert plan["data.input_size"] == [160, 224]
    assert plan["augment.gamma.p"] == 0.2 and plan["augment.affine.p"] == 0.75 and plan["augment.flip.p"] == 0.5
    assert plan["postprocess.stomach.keep_largest_component"] is True
    assert "postprocess.large_bowel.keep_largest_component" not in keys(plan)
    assert plan["training.ema_decay"] == 0.99


def test_epochs_fill_the_time():
    # 1440 windows in 90 steps of 0.5 s, 27 validation steps of 0.16 s, and 1 s: 50.4 s per epoch.
    plan = plan_of(abdomen(), lambda one: 0.5, minutes=20, start_seconds=0.0, slice_seconds=0.0)
    epoch = 90 * on_grid(0.5) + 27 * on_grid(0.5 / 3) + 1
    assert plan["training.epochs"] == int(0.97 * 20 * 60 / epoch) == 23
    assert plan.prediction.training_minutes == pytest.approx(23 * epoch / 60)
    assert 0.9 * 20 < plan.prediction.training_minutes < 20


@pytest.mark.parametrize(("minutes", "size"), [(2, [96, 128]), (20, [160, 224]), (200, [192, 256])])
def test_more_time_gives_a_larger_input(minutes, size):
    assert plan_of(abdomen(), minutes=minutes)["data.input_size"] == size


def test_jitter_of_the_timings_does_not_change_the_plan():
    texts = {plan_text(replace(plan_of(abdomen(), by_pixels(0.545 * j)), measured=())) for j in (0.99, 1.0, 1.01)}
    assert len(texts) == 1


def test_a_volume_that_fits_into_a_patch_gets_a_3d_network():
    plan = plan_of(hippocampus(), lambda one: 0.73 * one.overrides["model.filters"] / 16, windows=166, peak_gib=2.0)
    assert plan["model.architecture"] == "unet3d" and plan["model.levels"] == 4
    assert plan["data.patch"] == [32, 48, 32] and plan["data.input_size"] == [48, 32]
    assert plan["data.crop"] == "none" and plan["data.pixel_mm"] == 1.0 and plan["data.batch_size"] == 4
    assert plan["model.filters"] == 16
    assert "data.window_slices" not in keys(plan)


@pytest.mark.parametrize(("minutes", "filters"), [(0.3, 8), (3, 16), (20, 16), (60, 32)])
def test_more_time_gives_more_filters_to_a_3d_network(minutes, filters):
    step_of = lambda one: 0.73 * one.overrides["model.filters"] / 16  # noqa: E731
    plan = plan_of(hippocampus(), step_of, minutes=minutes, windows=166, held_out_windows=42, start_seconds=0.0)
    assert plan["model.filters"] == filters


def test_patches_are_multiples_of_what_the_poolings_divide():
    assert whole_volume_patch(hippocampus()) == ((32, 48, 32), 4)
    assert whole_volume_patch(hippocampus()) == whole_volume_patch(replace(hippocampus(), scans=1))
    assert whole_volume_patch(replace(hippocampus(), shape=(64.0, 64.0, 60.0))) == ((64, 64, 64), 4)
    assert whole_volume_patch(replace(hippocampus(), shape=(16.0, 100.0, 100.0))) == ((16, 100, 100), 3)


def test_thick_or_single_slices_get_a_2d_network():
    thick = abdomen(spacing=(10.0, 1.5, 1.5), least_spacing=(10.0, 1.5, 1.5), most_spacing=(10.0, 1.5, 1.5))
    for facts in (thick, abdomen(neighbors=0.2)):
        plan = plan_of(facts)
        assert plan["data.window_slices"] == 1 and "data.window_stride" not in keys(plan)


def test_different_slice_distances_get_a_stride_in_mm():
    plan = plan_of(abdomen(most_spacing=(5.0, 1.5, 1.5)))
    assert plan["data.window_stride_mm"] == 5.8 and "data.window_stride" not in keys(plan)


def test_labels_with_a_side_are_not_flipped():
    sided = abdomen(labels=(label("kidney_left", side="its name says left"), label("liver")))
    plan = plan_of(sided)
    assert plan["augment.flip.p"] == 0.0 and plan["evaluation.tta.flip"] is False
    assert plan_of(abdomen())["evaluation.tta.flip"] is True
    assert "its name says left" in plan_text(plan)


def test_ct_gets_a_window_of_its_labels_and_hardly_any_intensity_augmentation():
    plan = plan_of(abdomen(channels=(CT,)))
    assert plan["data.intensity"] == {"kind": "window", "low": -90, "high": 260}
    assert plan["augment.brightness.shift"] <= 0.05
    assert not {"augment.gamma.p", "augment.bias_field.p"} & set(keys(plan))
    both = plan_of(abdomen(channels=(CT, MR)))
    assert [one["kind"] for one in both["data.intensity"]] == ["window", "percentiles"]


def test_rare_labels_are_balanced():
    assert plan_of(abdomen())["data.balance_labels"] == 0.0
    assert plan_of(abdomen(labels=(label("liver"), label("gland", slice_fraction=0.02))))["data.balance_labels"] == 0.5


def test_small_components_are_removed_only_if_references_have_none():
    facts = abdomen(labels=(label("a", smallest_component_ml=40.0), label("b", smallest_component_ml=0.1)))
    plan = plan_of(facts)
    assert plan["postprocess.a.min_component_ml"] == 20.0 and "postprocess.b.min_component_ml" not in keys(plan)


def test_a_memory_limit_gives_a_smaller_batch_then_accumulation():
    roomy = plan_of(abdomen(), peak_gib=4.8)
    assert roomy["data.batch_size"] == 16 and roomy["data.cache_mib"] > 100
    assert "training.gradient_accumulation_steps" not in keys(roomy)
    plan = plan_of(abdomen(), peak_gib=4.8, memory=5.8)
    assert plan["data.batch_size"] == 8 and plan.prediction.peak_gib <= 5.8
    # About 0.44 GiB per window and 1.9 GiB for the rest: not even 2 windows at once fit into 2.5 GiB.
    plan = plan_of(abdomen(), peak_gib=4.8, memory=2.5)
    assert plan["data.batch_size"] == 4 and plan["training.gradient_accumulation_steps"] > 1
    assert plan["evaluation.batch_size"] < 4 and plan.prediction.peak_gib <= 2.5


def test_scans_that_do_not_fit_into_memory_are_streamed():
    many = abdomen(training=((144, 90),) * 3000)
    plan = plan_of(many)
    assert plan["data.cache_mib"] == 0 and plan.prediction.peak_gib < 12


def test_impossible_limits_say_what_would_fit(refusal):
    facts = abdomen()
    costs = measured(facts, by_pixels(0.5))
    message = refusal(decide, facts, MACHINE, costs, minutes=20, memory_gib=0.5)
    assert message.startswith("the memory limit is 0.5 GiB") and "allow at least" in message
    enough = float(message.split("allow at least ")[1].split()[0])
    assert decide(facts, MACHINE, costs, minutes=20, memory_gib=enough)
    message = refusal(decide, facts, MACHINE, costs, minutes=0.1, memory_gib=12)
    assert message.startswith("0.1 minutes are too short: one epoch takes")
    enough = float(message.split("allow at least ")[1])
    assert decide(facts, MACHINE, costs, minutes=enough * 1.1, memory_gib=12)["training.epochs"] == 1


def test_what_was_not_measured_is_interpolated_and_said():
    facts = abdomen()
    costs = measured(facts, by_pixels(0.5))
    plan = decide(facts, MACHINE, costs, minutes=20, memory_gib=12)
    assert any("interpolated" in line for line in plan.measured)
    first = dict([next(iter(costs.items()))])
    alone = decide(facts, MACHINE, first, minutes=20, memory_gib=12)
    assert alone["data.input_size"] == plan["data.input_size"]
    assert sum("interpolated" in line for line in alone.measured) == len(candidates(facts, MACHINE)) - 1


def test_the_average_of_the_weights_spans_a_tenth_of_the_steps():
    assert [ema_decay(steps) for steps in (50, 100, 200, 1000, 2000, 10_000)] == [0.9, 0.9, 0.95, 0.99, 0.995, 0.999]


@pytest.mark.parametrize(
    "facts", [abdomen(), hippocampus(), abdomen(channels=(CT,), patients=200)], ids=["a", "h", "c"]
)
def test_a_plan_is_a_valid_config_with_a_reason_for_each_key(facts):
    plan = plan_of(facts, lambda one: 0.5, peak_gib=1.8)
    text = plan_text(plan, "mine")
    config = load_config(None, parse_yaml(text)).for_dataset(
        LabelSet.of(*(one.name for one in facts.labels)), ("image",)
    )
    assert config.name == "mine" and config.training.epochs == plan["training.epochs"]
    assert all(choice.reason for choice in plan.choices)
    for choice in plan.choices:
        assert choice.reason.split()[0] in text
    assert config.provenance["plan"]["minutes"] == pytest.approx(plan.prediction.training_minutes, rel=1e-3)
    assert max(map(len, text.splitlines())) <= 120
    assert "# Not tried:" in text and "# Measured on this machine:" in text


def test_names_of_labels_are_quoted_as_yaml_needs():
    names = ("1", "on", "a.b")
    facts = abdomen(labels=tuple(label(name, components=1) for name in names))
    config = load_config(None, parse_yaml(plan_text(plan_of(facts))))
    assert {name for name, one in config.postprocess.labels.items() if one.keep_largest_component} == set(names)


def test_a_measurement_survives_its_file():
    made = cost()
    assert Measurement.from_tree(made.to_tree()) == made
    with pytest.raises((KeyError, ValueError)):
        Measurement.from_tree({**made.to_tree(), "step_seconds": float("nan")})
