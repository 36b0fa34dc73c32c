import csv

import pytest
import tf_keras as keras

from gitseg_tf.cli import main
from gitseg_tf.config.model import DECODERS, NETWORKS_3D
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.cost import flops, networks


def test_a_multiply_add_counts_as_two_operations():
    inputs = keras.Input((16, 8, 5))
    strided = keras.layers.Conv2D(7, 3, strides=2, padding="same", use_bias=False)(inputs)
    depthwise = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(strided)
    outputs = keras.layers.Conv2D(2, 1, use_bias=False)(depthwise)
    by_hand = 8 * 4 * (7 * 9 * 5 + 7 * 9 + 2 * 7)
    assert flops(keras.Model(inputs, outputs)) == 2 * by_hand


def test_a_transposed_convolution_is_counted_per_input_voxel():
    inputs = keras.Input((4, 16, 8, 5))
    outputs = keras.layers.Conv3DTranspose(7, (1, 2, 2), (1, 2, 2), use_bias=False)(inputs)
    assert flops(keras.Model(inputs, outputs)) == pytest.approx(2 * 4 * 16 * 8 * 5 * 7 * 4, rel=1e-3)


def test_resnet34_has_the_published_number_of_operations():
    # torchvision's table: 3.66 GFLOPS, which are multiply-adds, at 3 x 224 x 224, with a classifier of 512 x 1000.
    encoder = BACKBONES.get("resnet34").encoder((224, 224, 3), None)
    assert flops(encoder) / 2e9 == pytest.approx(3.66 - 512 * 1000 / 1e9, rel=0.02)


def test_the_table_lists_unet_with_each_backbone_and_every_other_decoder_once():
    rows = networks(None, None)
    assert {backbone for architecture, backbone in rows if architecture == "unet"} == set(BACKBONES)
    assert {architecture for architecture, _ in rows} == {*DECODERS, *NETWORKS_3D}
    assert len(rows) == len(set(rows)) == len(BACKBONES) + len(DECODERS) - 1 + len(NETWORKS_3D)


@pytest.mark.slow
def test_models_prints_and_writes_the_selected_rows(capsys, tmp_path):
    chosen = ["--architecture", "fpn", "--backbone", "plain", "--size", "32", "--slices", "3"]
    assert main(["models", *chosen, "--csv", str(tmp_path / "table.csv")]) == 0
    printed = capsys.readouterr().out
    assert "fpn" in printed and "a multiply-add counts as 2 floating-point operations" in printed
    with open(tmp_path / "table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["architecture"], row["backbone"]) == ("fpn", "plain")
    assert int(row["parameters"]) > int(row["encoder"]) > 1e6
    assert float(row["windows_per_second"]) > 0 and float(row["gflops"]) > 0


@pytest.mark.slow
def test_3d_networks_are_measured_with_patches_and_have_no_backbone(capsys):
    assert main(["models", "--architecture", "unet3d", "--size", "128"]) == 0
    head, row, foot = capsys.readouterr().out.splitlines()
    assert row.startswith("unet3d ") and len(row) == len(head)
    assert "patches of 3-D networks 32 x 64 x 64" in foot
    assert main(["models", "--architecture", "unet3d", "--backbone", "plain"]) == 1
    assert "unet3d: has its own encoder; leave out the backbone" in capsys.readouterr().err


def test_an_unknown_backbone_is_refused_with_a_suggestion(capsys):
    assert main(["models", "--backbone", "resnet35"]) == 1
    assert "unknown backbone 'resnet35'; did you mean resnet" in capsys.readouterr().err
