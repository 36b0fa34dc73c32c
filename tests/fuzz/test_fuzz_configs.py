"""Damaged labels.yaml and config files, and damaged KEY=VALUE settings."""

import pytest
import yaml
from helpers.configs import tiny_config
from helpers.damage import Tally, damaged_bytes, damaged_yaml, generator

from gitseg_tf.config import load_config, parse_assignment, save_config
from gitseg_tf.labels import UWMGI, read_labels

pytestmark = pytest.mark.slow


def test_labels(tmp_path):
    rng, tally = generator(30), Tally()
    tree = {"labels": [*UWMGI.to_tree(), "liver", {"name": "spleen", "color": [1, 2, 3], "code": None}]}
    path = tmp_path / "labels.yaml"
    for n in range(400):
        path.write_bytes(damaged_yaml(rng, tree if n % 2 else tree["labels"]))
        labels = tally(path.read_bytes()[:300], read_labels, path)
        if labels is not None:
            assert all(name and "/" not in name for name in labels.names)
            yaml.safe_dump(labels.to_tree())
    tally.check(400, accepted=50, refused=200)


def test_configs(tmp_path):
    rng, tally = generator(31), Tally()
    tree = tiny_config().model_dump(mode="json")
    small = {
        "name": "x",
        "data": {"input_size": [32, 32], "fold": 0, "labels": ["a"]},
        "model": {"architecture": "unet", "filters": 4},
        "training": {"loss": {"dice": {"weight": 1.0}}, "learning_rate": "1e-3"},
        "augment": {"affine": {"p": 0.5}},
        "postprocess": {"stomach": {"threshold": 0.4}},
        "provenance": {"a": [1]},
    }
    path = tmp_path / "config.yaml"
    for n in range(500):
        path.write_bytes(damaged_yaml(rng, tree if n % 8 == 0 else small))
        config = tally(path.read_bytes()[:300], load_config, path)
        if config is not None and n % 10 == 0:
            save_config(config, tmp_path / "again.yaml")
            assert load_config(tmp_path / "again.yaml") is not None
    tally.check(500, accepted=50, refused=200)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f"provenance: {{{BOMB.replace(chr(10), ', ')}}}",
        "data: &x {path: *x}",
        "provenance: &x [*x]",
        "!!python/object/apply:os.system [id]",
        "name: !!timestamp x",
        "seed: !!int ''",
        "seed: !!float _",
        "name: !!bool maybe",
        "? [a]\n: 1",
        "seed: " + "9" * 10000,
        "seed: 0x" + "f" * 50000,
        "seed: 1:" + "59:" * 20000 + "0",
        "%YAML 9.9\n---\na: 1",
        "a: 1\n---\nb: 2",
        "name: &a\n",
        "<<: [1]",
        "<<: {name: x}\nseed: 1",
    ],
)
@pytest.mark.parametrize("read", [load_config, read_labels])
def test_hostile_yaml(tmp_path, text, read):
    tally = Tally()
    path = tmp_path / "file.yaml"
    path.write_text(text)
    tally(text, read, path)
    tally.check(1, accepted=0, refused=0)


def test_settings():
    rng, tally = generator(32), Tally()
    valid = [
        "training.epochs=3",
        "data.labels=[a, b]",
        "evaluation.tta={flip: true}",
        "postprocess.stomach.threshold=0.4",
        "data.fold=null",
    ]
    for n in range(400):
        text = damaged_bytes(rng, valid[n % len(valid)].encode()).decode("latin-1")

        def set_one(text=text):
            key, value = parse_assignment(text)
            return load_config(None, {key: value})

        tally(text, set_one)
    tally.check(400, accepted=5, refused=100)
