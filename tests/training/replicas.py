"""What test_distributed runs in processes of its own, for TensorFlow's devices are chosen once a process.

`replicas.py compare DATASET OUT` prints JSON: histories and the first gradient on one device and on two replicas.
`replicas.py worker DATASET OUT` trains as one of the workers that TF_CONFIG names, or goes on with OUT; DIE_AT=STEP in
the environment has it kill itself after that step.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.data.dataset import load_dataset
from gitseg_tf.errors import InputError
from gitseg_tf.models import backbones
from gitseg_tf.models.build import build_model
from gitseg_tf.training import trainer
from gitseg_tf.training.callbacks import EpochBars, read_history
from gitseg_tf.training.losses import bce_dice_loss
from gitseg_tf.training.strategy import choose_strategy

# The rate is small, for Adam blows up differences in rounding: it divides by the size of small gradients.
SETTINGS = {
    "data.size": [32, 32],
    "data.slices": 3,
    "data.fold": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "training.epochs": 2,
    "training.learning_rate": 1e-4,
    "training.precision": "float32",
    "evaluation.threshold": 0.05,
}


ON_ACCELERATOR = {"augment.on": "accelerator", "augment.affine.p": 1.0, "augment.noise.p": 0.0}


# Two levels of the encoder instead of five, for what takes time here is to trace the graph.
backbones.BACKBONES["plain"] = lambda inputs, config: {
    s: f for s, f in backbones.plain(inputs, config).items() if s < 4
}


def trained(dataset, out: Path, strategy: str, epochs: int = 2, **more) -> list[dict]:
    config = load_config(None, SETTINGS | {"training.strategy": strategy, "training.epochs": epochs} | more)
    trainer.train(config, dataset, out, resume=True, say=lambda line: None)
    return read_history(out)


def first_gradient(strategy: str) -> tuple[float, list]:
    """Loss of a batch through keras's own step, and the gradient: what SGD of rate 1 takes off the weights."""
    # Noise has no ties, where rounding decides which pixel a maximum passes the gradient to. The organs are in one half
    # of the batch: a Dice of each replica's own half would be another.
    rng = np.random.default_rng(0)
    image = rng.random((8, 32, 32, 3), np.float32)
    mask = (rng.random((8, 32, 32, 3)) < [0.3, 0.2, 0.1]).astype(np.float32) * (np.arange(8) < 4)[:, None, None, None]
    batch = tf.data.Dataset.from_tensor_slices((image, mask)).batch(8, drop_remainder=True)
    keras.utils.set_random_seed(0)
    with choose_strategy(strategy)[0].scope():
        model = build_model(load_config(None, SETTINGS), synchronized=True)
        model.compile(keras.optimizers.SGD(1.0), bce_dice_loss())
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = model.fit(batch, verbose=0).history["loss"][0]
    change = [a - v.numpy() for a, v in zip(before, model.trainable_variables, strict=True)]
    return loss, np.concatenate([part.ravel() for part in change]).tolist()


def compare(dataset, out: Path) -> dict:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    names = ("one_device", "mirrored")
    return {
        "replicas": choose_strategy("mirrored")[0].num_replicas_in_sync,
        "history": {name: trained(dataset, out / name, name) for name in names},
        "first": {name: first_gradient(name) for name in names},
        "augmented": {name: trained(dataset, out / f"augmented-{name}", name, 1, **ON_ACCELERATOR) for name in names},
    }


def work(dataset, out: Path) -> None:
    def end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == int(os.environ.get("DIE_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    EpochBars.on_train_batch_end = end
    try:
        trained(dataset, out, "auto", **{"training.checkpoint_minutes": 1e-6})
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    role, root, out = sys.argv[1], *map(Path, sys.argv[2:])
    if role == "compare":
        print(json.dumps(compare(load_dataset(root), out)))
    else:
        work(load_dataset(root), out)
