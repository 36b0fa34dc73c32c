"""What test_distributed runs in processes of its own, for TensorFlow's devices are chosen once a process.

`replicas.py compare DATASET OUT` prints JSON: histories, losses and gradients on one device and on two replicas.
`replicas.py eight DATASET OUT` prints the history on eight replicas.
`replicas.py worker DATASET OUT` trains as one of the workers that TF_CONFIG names, or goes on with OUT; DIE_AT=STEP in
the environment has it kill itself after that step.
"""

import json
import os
import signal
import sys
from functools import cache
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.data.dataset import load_dataset
from gitseg_tf.errors import InputError
from gitseg_tf.models.build import build_model
from gitseg_tf.sections.loss import LossConfig
from gitseg_tf.training import setup, trainer
from gitseg_tf.training.callbacks import EpochBars, read_history
from gitseg_tf.training.losses import build_loss, training_loss
from gitseg_tf.training.losses.build import PIXEL_TERMS, REGION_TERMS
from gitseg_tf.training.strategy import choose_strategy

# The rate is small, for Adam blows up differences in rounding: it divides by the size of small gradients.
SETTINGS = {
    "data.size": [32, 32],
    "data.slices": 3,
    "data.fold": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "model.levels": 2,  # what takes time here is to trace the graph
    "training.epochs": 2,
    "training.learning_rate": 1e-4,
    "training.precision": "float32",
    "evaluation.threshold": 0.05,
}


# A slower encoder, averaged weights with statistics of their own, micro-batches and an optimizer of the older kind. Its
# epsilon is large: Yogi does not blow up differences in rounding.
OPTIMISED = {
    "training.optimizer": "Addons>Yogi",
    "training.learning_rate": 1e-3,
    "training.accumulate": 2,
    "training.encoder_rate": 0.5,
    "training.ema": 0,
    "training.swa": 2,
}
ON_ACCELERATOR = {"augment.on": "accelerator", "augment.affine.p": 1.0, "augment.noise.p": 0.0}


# A second strategy of a process would number its collective operations from the start again, and mistake them for the
# first's.
choose_strategy = setup.choose_strategy = cache(choose_strategy)


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
        config = load_config(None, SETTINGS)
        model = build_model(config, synchronized=True)
        model.compile(keras.optimizers.SGD(1.0), build_loss(config.training.loss))
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = model.fit(batch, verbose=0).history["loss"][0]
    change = [a - v.numpy() for a, v in zip(before, model.trainable_variables, strict=True)]
    return loss, np.concatenate([part.ravel() for part in change]).tolist()


def every_loss(name: str) -> dict[str, list]:
    """Of each term alone, which skips empty organs: losses [8] and their mean's gradient, flat."""
    strategy = choose_strategy(name)[0]
    share = 8 // strategy.num_replicas_in_sync
    rng = np.random.default_rng(1)
    # The second organ is in the other half of the batch alone, the third nowhere.
    there = np.array([[1, 0, 0]] * 4 + [[1, 1, 0]] * 4)[:, None, None]
    mask = ((rng.random((8, 9, 9, 3)) < 0.3) * there).astype(np.float32)
    logits = rng.normal(size=mask.shape).astype(np.float32)
    losses = {}
    for name in PIXEL_TERMS | REGION_TERMS:
        off = {"bce": {"weight": 0}, "dice": {"weight": 0}, "boundary": {"reach": 3}, "empty_organs": "skip"}
        losses[name] = training_loss(LossConfig.model_validate(off | {name: {"weight": 1}}))

    def part(array):
        def of(context):
            first = share * context.replica_id_in_sync_group
            return tf.constant(array[first : first + share])

        return strategy.experimental_distribute_values_from_function(of)

    def step(mask, logits, presence):
        found = {}
        for name, loss in losses.items():
            with tf.GradientTape() as tape:
                tape.watch(logits)
                cost = loss(mask, {"logits": logits, "presence": presence})
                mean = tf.reduce_sum(cost) / 8
            found[name] = cost, tape.gradient(mean, logits)
        return found

    found = tf.function(strategy.run)(step, (part(mask), part(logits), part(logits[:, 0, 0])))

    def whole(value):
        return np.concatenate(strategy.experimental_local_results(value)).ravel().tolist()

    return {name: [whole(value) for value in values] for name, values in found.items()}


def compare(dataset, out: Path) -> dict:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    names = ("one_device", "mirrored")
    return {
        "replicas": choose_strategy("mirrored")[0].num_replicas_in_sync,
        "history": {name: trained(dataset, out / name, name) for name in names},
        "losses": {name: every_loss(name) for name in names},
        "first": {name: first_gradient(name) for name in names},
        "optimised": {name: trained(dataset, out / f"optimised-{name}", name, 2, **OPTIMISED) for name in names},
        "augmented": {name: trained(dataset, out / f"augmented-{name}", name, 1, **ON_ACCELERATOR) for name in names},
    }


def eight(dataset, out: Path) -> dict:
    """The training of `compare` on eight replicas."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
    )
    history = trained(dataset, out / "mirrored", "mirrored")
    return {"replicas": choose_strategy("mirrored")[0].num_replicas_in_sync, "history": history}


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
    if role in ("compare", "eight"):
        print(json.dumps({"compare": compare, "eight": eight}[role](load_dataset(root), out)))
    else:
        work(load_dataset(root), out)
