"""Weights of one network in another: what is loaded, adapted and new, and that the network computes the same."""

import numpy as np
import pytest
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.labels import LabelSet
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.models.transfer import (
    ADAPTED,
    LOADED,
    NEW,
    Inputs,
    SourceNetwork,
    adapted_kernel,
    fits_usefully,
    plan_transfer,
    set_layer_weights,
    weighted_layers,
)

RNG = np.random.default_rng(0)
GI, BODY = LabelSet.of("liver", "spleen"), LabelSet.of("spleen", "kidney", "liver")


def network(seed, labels=GI, channels=("t1",), **changes):
    """A network with random weights everywhere, the arrays of its layers, and the meaning of its inputs."""
    config = tiny_config(labels, channels, **changes)
    keras.utils.set_random_seed(seed)
    model = build_model(config)
    rng = np.random.default_rng(seed)
    model.set_weights([array + 0.1 * rng.random(array.shape, np.float32) for array in model.get_weights()])
    slices = 1 if config.data.patch else config.data.window_slices
    return model, Inputs(slices, channels), labels.names


def source_of(model, inputs, labels):
    return SourceNetwork(model.name, {n: v.get_weights() for n, v in weighted_layers(model).items()}, inputs, labels)


def transferred(source, target):
    """Load a network into another one; the plan, and both models."""
    (model, inputs, labels) = target
    plan = plan_transfer(source_of(*source), model, inputs, labels)
    set_layer_weights(model, plan.weights)
    return plan, source[0], model


def statuses(plan):
    return {row.layer: row.status for row in plan.rows}


def windows(channels, seed=5):
    return np.random.default_rng(seed).random((2, 32, 32, channels), np.float32)


def test_an_equal_network_is_loaded_whole():
    plan, before, after = transferred(network(1), network(2))
    assert set(statuses(plan).values()) == {LOADED} and all(row.kept == row.parameters for row in plan.rows)
    assert np.array_equal(before(windows(3)), after(windows(3)))


def test_another_size_of_the_input_changes_nothing():
    plan, _, _ = transferred(network(1), network(2, data__input_size=[64, 96]))
    assert set(statuses(plan).values()) == {LOADED}


def test_labels_with_the_same_names_keep_their_outputs_in_any_order():
    plan, before, after = transferred(network(1), network(2, labels=BODY))
    row = next(row for row in plan.rows if row.layer == "logits")
    assert (row.status, row.note) == (ADAPTED, "spleen, liver kept, kidney new")
    assert row.kept == 2 * row.parameters // 3
    assert {row.status for row in plan.rows if row.layer != "logits"} == {LOADED}
    one, other = before(windows(3)).numpy(), after(windows(3)).numpy()
    assert np.array_equal(other[..., 0], one[..., 1]) and np.array_equal(other[..., 2], one[..., 0])
    assert not np.isclose(other[..., 1], one[..., 0]).any()


def test_all_heads_follow_the_labels():
    heads = {"model__presence_head": True, "model__deep_supervision": True, "model__architecture": "unetplusplus"}
    heads["model__levels"] = 4
    plan, before, after = transferred(network(1, **heads), network(2, labels=BODY, **heads))
    adapted = {row.layer for row in plan.rows if row.status == ADAPTED}
    assert {"logits", "presence", "deep1"} <= adapted and all(
        name.startswith(("deep", "log", "pre")) for name in adapted
    )
    one, other = before(windows(3)), after(windows(3))
    for name in one:
        assert np.array_equal(one[name][..., 1], other[name][..., 0])


def test_labels_without_a_common_name_get_a_new_head():
    plan, _, _ = transferred(network(1), network(2, labels=LabelSet.of("stomach")))
    assert statuses(plan)["logits"] == NEW and "logits" not in plan.weights


@pytest.mark.parametrize("slices", [5, 7])
def test_additional_outer_slices_do_not_change_the_output(slices):
    plan, before, after = transferred(network(1), network(2, data__window_slices=slices))
    row = plan.rows[0]
    assert (row.layer, row.status, row.note) == ("encoder0_1_conv", ADAPTED, f"3 to {slices} slices")
    more, outer = windows(slices), (slices - 3) // 2
    assert np.allclose(before(more[..., outer:-outer]), after(more), atol=1e-5)


def test_missing_outer_slices_count_as_repeated_ones():
    plan, before, after = transferred(network(1, data__window_slices=5), network(2, data__window_slices=3))
    assert plan.rows[0].status == ADAPTED
    few = windows(3)
    repeated = np.concatenate([few[..., :1], few, few[..., -1:]], -1)
    assert np.allclose(before(repeated), after(few), atol=1e-5)


def test_an_additional_channel_starts_without_effect():
    plan, before, after = transferred(network(1), network(2, channels=("t2", "t1")))
    assert plan.rows[0].note == "channels t1 to t2, t1"
    both = windows(6)  # slice by slice: t2, t1, t2, t1, ...
    assert np.allclose(before(both[..., 1::2]), after(both), atol=1e-5)


def test_channels_in_another_order_are_permuted_though_the_shapes_are_equal():
    plan, before, after = transferred(network(1, channels=("t1", "t2")), network(2, channels=("t2", "t1")))
    assert plan.rows[0].status == ADAPTED
    both = windows(6)
    assert np.allclose(before(both[..., [1, 0, 3, 2, 5, 4]]), after(both), atol=1e-5)


def test_a_renamed_single_channel_is_loaded_as_it_is():
    plan, before, after = transferred(network(1, channels=("image",)), network(2, channels=("ct",)))
    assert plan.rows[0].status == LOADED
    assert np.array_equal(before(windows(3)), after(windows(3)))


def test_kernels_by_hand():
    kernel = np.arange(1.0, 7).reshape(6, 1)  # three slices of (a, b)
    three = Inputs(3, ("a", "b"))
    assert adapted_kernel(kernel, three, Inputs(1, ("b",))).ravel().tolist() == [12 + 9]
    assert adapted_kernel(kernel, three, Inputs(1, ("c", "b"))).ravel().tolist() == [9, 12]
    assert adapted_kernel(kernel, three, Inputs(1, ("c", "d", "e"))).ravel().tolist() == [7, 7, 7]
    # Unknown channels: the mean over the inputs, with the same sum.
    assert adapted_kernel(kernel, Inputs(1, None), Inputs(1, ("a", "b", "c"))).ravel().tolist() == [7, 7, 7]


def test_another_decoder_keeps_the_encoder_and_what_has_its_name_and_shape():
    plan, _, _ = transferred(network(1), network(2, model__architecture="attention_unet"))
    by_part = {}
    for row in plan.rows:
        by_part.setdefault(row.part, set()).add(row.status)
    assert by_part["encoder"] == {LOADED} and NEW in by_part["decoder1"] and LOADED in by_part["decoder1"]
    assert all(row.note == "not in the source" for row in plan.rows if "gate" in row.layer)


def test_normalization_after_a_new_convolution_is_new():
    """Its shapes fit, but its statistics describe other features."""
    plan, _, _ = transferred(network(1), network(2, model__levels=4))
    status = statuses(plan)
    assert status["encoder3_1_conv"] == status["encoder3_1_bn"] == NEW
    source = source_of(*network(1))
    source.layers["decoder2_2_conv"] = [np.zeros((5, 5, 8, 8), np.float32)]
    model, inputs, labels = network(2)
    rows = {row.layer: row for row in plan_transfer(source, model, inputs, labels).rows}
    assert rows["decoder2_2_conv"].note == "5x5x8x8 in the source, 3x3x8x8 here"
    assert (rows["decoder2_2_bn"].status, rows["decoder2_2_bn"].note) == (NEW, "follows decoder2_2_conv, which is new")
    assert rows["decoder2_1_bn"].status == LOADED


def test_a_network_that_shares_only_names_fits_not_usefully():
    source, (model, inputs, labels) = network(1, model__filters=8), network(2)
    plan = plan_transfer(source_of(*source), model, inputs, labels)
    assert not fits_usefully(plan, model) and set(statuses(plan).values()) == {NEW}
    assert fits_usefully(transferred(network(1), network(2, labels=BODY))[0], model)


def test_a_3d_network_starts_from_another_patch_size_and_channels():
    settings = {"model__architecture": "unet3d", "data__input_size": [64, 64]}
    one = network(1, data__patch=[16, 32, 32], **settings)
    plan, before, after = transferred(one, network(2, channels=("t1", "t2"), data__patch=[16, 64, 64], **settings))
    assert plan.rows[0].status == ADAPTED and plan.rows[0].note == "channels t1 to t1, t2"
    assert {row.status for row in plan.rows[1:]} <= {LOADED, NEW}
    assert all(row.layer.endswith("up") for row in plan.rows if row.status == NEW)
    assert logits_of(before.output).shape[-1] == logits_of(after.output).shape[-1] == 2


def test_the_heads_are_never_frozen():
    plan, _, _ = transferred(network(1), network(2))
    assert "logits" not in plan.loaded and {"encoder0_1_conv", "decoder1_2_bn"} <= plan.loaded
