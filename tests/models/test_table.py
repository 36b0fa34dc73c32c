import csv

import pytest
import tf_keras as keras

from gitseg_tf.cli import main
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.build import DECODERS
from gitseg_tf.models.table import flops, networks


def test_a_multiply_add_is_two_operations():
    inputs = keras.Input((16, 8, 5))
    strided = keras.layers.Conv2D(7, 3, strides=2, padding="same", use_bias=False)(inputs)
    depthwise = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(strided)
    outputs = keras.layers.Conv2D(2, 1, use_bias=False)(depthwise)
    by_hand = 8 * 4 * (7 * 9 * 5 + 7 * 9 + 2 * 7)
    assert flops(keras.Model(inputs, outputs)) == 2 * by_hand


def test_resnet34_has_the_published_number_of_operations():
    # torchvision's table: 3.66 GFLOPS, which are multiply-adds, at 3 x 224 x 224, with a classifier of 512 x 1000.
    encoder = BACKBONES["resnet34"].encoder((224, 224, 3), None)
    assert flops(encoder) / 2e9 == pytest.approx(3.66 - 512 * 1000 / 1e9, rel=0.02)


def test_the_table_has_unet_with_each_backbone_and_each_other_decoder_once():
    rows = networks(None, None)
    assert {backbone for architecture, backbone in rows if architecture == "unet"} == set(BACKBONES)
    assert {architecture for architecture, _ in rows} == set(DECODERS)
    assert len(rows) == len(set(rows)) == len(BACKBONES) + len(DECODERS) - 1


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


def test_a_name_that_is_in_no_table_is_refused(capsys):
    assert main(["models", "--backbone", "resnet35"]) == 1
    assert "resnet35: is no 2-D backbone; there are plain, resnet18, " in capsys.readouterr().err
