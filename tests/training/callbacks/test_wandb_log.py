import importlib.util
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from gitseg_tf.config import load_config
from gitseg_tf.training.callbacks.wandb_log import WandbLogger, import_wandb

CONFIG = load_config(None, {"training.wandb": "bowel", "seed": 7})
PICTURE = np.zeros((4, 5, 3), np.uint8)


@pytest.fixture
def fake(monkeypatch):
    """A fake wandb module that records its calls."""
    module = ModuleType("wandb")
    module.started, module.logged, module.ended = [], [], []
    module.Error = type("Error", (Exception,), {})
    module.Image = lambda picture: ("image", picture.shape)

    def init(**settings):
        module.started.append(settings)
        return SimpleNamespace(
            id=settings["id"] or "abc123",
            log=lambda row, step: module.logged.append((step, row)),
            finish=lambda exit_code: module.ended.append(exit_code),
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_metrics_and_pictures_of_an_epoch_are_logged(fake, tmp_path):
    with WandbLogger(tmp_path, CONFIG) as logger:
        logger.write(4, {"loss": 0.5, "val_dice": 0.25}, {"case1, slice 3 of 8": PICTURE})
    assert fake.logged == [(4, {"loss": 0.5, "val_dice": 0.25, "overlays/case1, slice 3 of 8": ("image", (4, 5, 3))})]
    (settings,) = fake.started
    assert (settings["project"], settings["name"], settings["dir"]) == ("bowel", tmp_path.name, str(tmp_path))
    assert settings["config"]["seed"] == 7 and fake.ended == [0]


def test_a_resumed_run_continues_the_same_wandb_run(fake, tmp_path):
    for _ in range(2):
        with WandbLogger(tmp_path, CONFIG):
            pass
    assert [settings["id"] for settings in fake.started] == [None, "abc123"]
    assert {settings["resume"] for settings in fake.started} == {"allow"}


def test_a_failed_run_is_finished_as_failed(fake, tmp_path):
    with pytest.raises(RuntimeError), WandbLogger(tmp_path, CONFIG):
        raise RuntimeError
    assert fake.ended == [1]


def test_a_wandb_error_is_a_one_line_error(fake, tmp_path, refusal):
    def init(**settings):
        raise fake.Error("api_key not configured (no-tty)\nrun wandb login")

    fake.init = init
    message = refusal(WandbLogger, tmp_path, CONFIG)
    assert "api_key not configured" in message and "WANDB_MODE=offline" in message and not any(tmp_path.iterdir())


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refusal(import_wandb)
    assert message.startswith("training.wandb: the package wandb") and "pip install 'gitseg-tf[wandb]'" in message


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not installed")
def test_the_real_package_logs_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with WandbLogger(tmp_path, CONFIG) as logger:
        logger.write(0, {"val_dice": 0.5}, {"case1": PICTURE})
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 20
    while b"val_dice" not in written.read_bytes() and time.monotonic() < until:  # wandb's own process writes the file
        time.sleep(0.1)
    assert b"overlays/case1" in written.read_bytes() and b"val_dice" in written.read_bytes()
    assert len(list(written.parent.glob("files/media/images/overlays/case1_*.png"))) == 1
    assert (tmp_path / "wandb-id.txt").read_text().strip() in written.name
