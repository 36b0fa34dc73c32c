import csv

import pytest
import tf_keras as keras

from gitseg_tf.cli import main
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.build import DECODERS
from gitseg_tf.models.table import flops, networks
from gitseg_tf.models.unet3d import NETWORKS_3D


def test_a_multiply_add_is_two_operations():
    inputs = keras.Input((16, 8, 5))
    strided = keras.layers.Conv2D(7, 3, strides=2, padding="same", use_bias=False)(inputs)
    depthwise = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(strided)
    outputs = keras.layers.Conv2D(2, 1, use_bias=False)(depthwise)
    by_hand = 8 * 4 * (7 * 9 * 5 + 7 * 9 + 2 * 7)
    assert flops(keras.Model(inputs, outputs)) == 2 * by_hand


def test_a_transposed_convolution_has_the_operations_of_its_input_voxels():
    inputs = keras.Input((4, 16, 8, 5))
    outputs = keras.layers.Conv3DTranspose(7, (1, 2, 2), (1, 2, 2), use_bias=False)(inputs)
    assert flops(keras.Model(inputs, outputs)) == pytest.approx(2 * 4 * 16 * 8 * 5 * 7 * 4, rel=1e-3)


def test_resnet34_has_the_published_number_of_operations():
    # torchvision's table: 3.66 GFLOPS, which are multiply-adds, at 3 x 224 x 224, with a classifier of 512 x 1000.
    encoder = BACKBONES["resnet34"].encoder((224, 224, 3), None)
    assert flops(encoder) / 2e9 == pytest.approx(3.66 - 512 * 1000 / 1e9, rel=0.02)


def test_the_table_has_unet_with_each_backbone_and_each_other_decoder_once():
    rows = networks(None, None)
    assert {backbone for architecture, backbone in rows if architecture == "unet"} == set(BACKBONES)
    assert {architecture for architecture, _ in rows} == {*DECODERS, *NETWORKS_3D}
    assert len(rows) == len(set(rows)) == len(BACKBONES) + len(DECODERS) - 1 + len(NETWORKS_3D)


def test_the_command_prints_and_writes_the_rows_that_are_asked_for(capsys, tmp_path):
    chosen = ["--architecture", "fpn", "--backbone", "plain", "--size", "32", "--slices", "3"]
    assert main(["models", *chosen, "--csv", str(tmp_path / "table.csv")]) == 0
    printed = capsys.readouterr().out
    assert "fpn" in printed and "a multiply-add is 2 floating-point operations" in printed
    with open(tmp_path / "table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["architecture"], row["backbone"]) == ("fpn", "plain")
    assert int(row["parameters"]) > int(row["encoder"]) > 1e6
    assert float(row["windows_per_second"]) > 0 and float(row["gflops"]) > 0


def test_3d_networks_are_measured_with_patches_and_have_no_backbone(capsys):
    assert main(["models", "--architecture", "unet3d", "--size", "128"]) == 0
    head, row, foot = capsys.readouterr().out.splitlines()
    assert row.startswith("unet3d ") and len(row) == len(head)
    assert "32 x 64 x 64 of 3-D networks" in foot
    assert main(["models", "--architecture", "unet3d", "--backbone", "plain"]) == 1
    assert "unet3d: has an encoder of its own; leave --backbone out" in capsys.readouterr().err


def test_a_name_that_is_in_no_table_is_refused(capsys):
    assert main(["models", "--backbone", "resnet35"]) == 1
    assert "resnet35: there is no such backbone; there are plain, resnet18, " in capsys.readouterr().err
