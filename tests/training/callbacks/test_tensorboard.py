from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from gitseg_tf.config import load_config
from gitseg_tf.training.callbacks import tensorboard
from gitseg_tf.training.callbacks.tensorboard import EpochLog, TensorBoardLogger, open_loggers

ROW = {"loss": 0.5, "dice": 0.25, "val_loss": 0.75, "val_dice": 0.125, "val_dice_stomach": 1.0, "learning_rate": 1e-3}


def logged(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Logs of two epochs and, by a second logger, a third."""
    folder = tmp_path_factory.mktemp("run") / "logs"
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10, 20] = (230, 159, 0)
    for epochs in ((0, 1), (2,)):
        logger = TensorBoardLogger(folder)
        for epoch in epochs:
            logger.write(
                epoch, ROW | {"loss": 0.5 - 0.1 * epoch, "windows_per_second": 42.0}, {"case1, slice 3": picture}
            )
        logger.close()
    return folder


def test_training_and_validation_share_tags(folder):
    train, validation = logged(folder / "train"), logged(folder / "validation")
    assert train.keys() == {"epoch_loss", "epoch_dice", "epoch_learning_rate", "windows_per_second"}
    assert validation.keys() == {"epoch_loss", "epoch_dice", "epoch_dice_stomach", "overlays/case1, slice 3"}
    assert validation["epoch_loss"][0][1] == 0.75 and train["epoch_learning_rate"][2][1] == pytest.approx(1e-3)


def test_a_resumed_run_continues_the_step_numbers(folder):
    steps, losses = zip(*logged(folder / "train")["epoch_loss"], strict=True)
    assert steps == (0, 1, 2) and losses == pytest.approx((0.5, 0.4, 0.3))


def test_pictures_keep_their_colors(folder):
    for _, (width, height, png) in logged(folder / "validation")["overlays/case1, slice 3"]:
        shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert (int(width), int(height)) == (60, 40) == shown.shape[1::-1]
        assert tuple(shown[10, 20]) == (230, 159, 0) and np.count_nonzero(shown.any(-1)) == 1


def test_throughput_excludes_the_compiling_step(monkeypatch):
    now = iter([0.0, 100.0, 101.0, 102.0, 104.0, 200.0, 204.0])
    monkeypatch.setattr(tensorboard.time, "perf_counter", lambda: next(now))
    written = []
    logger = SimpleNamespace(write=lambda *args: written.append(args))
    recorder = SimpleNamespace(rows=[{"epoch": 3, "loss": 0.5, "seconds": 9.0}])
    log = EpochLog([logger], recorder, SimpleNamespace(pictures={"a": 1}), batch_size=8)
    for epoch, steps in ((2, 4), (3, 1)):
        log.on_epoch_begin(epoch)
        for batch in range(steps):
            log.on_train_batch_end(batch)
        log.on_epoch_end(epoch)
    # Three steps in four seconds; then a single step, from which nothing can be excluded.
    assert written[0] == (2, {"loss": 0.5, "windows_per_second": 6.0}, {"a": 1})
    assert written[1][1]["windows_per_second"] == 2.0


def test_only_the_chief_writes(tmp_path):
    strategy = SimpleNamespace(extended=SimpleNamespace(should_checkpoint=False))
    with open_loggers(tmp_path, load_config(None, {"training.wandb": "project"}), strategy) as loggers:
        assert loggers == []
    assert not any(tmp_path.iterdir())
    with open_loggers(tmp_path, load_config(), tf.distribute.get_strategy()) as loggers:
        assert len(loggers) == 1
