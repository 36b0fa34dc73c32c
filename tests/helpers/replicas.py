"""Run by test_distributed in separate processes, because TensorFlow configures its devices once per process.

`replicas.py compare DATASET OUT` prints JSON: histories, losses and gradients on one device and on two replicas.
`replicas.py eight DATASET OUT` prints the history on eight replicas.
`replicas.py worker DATASET OUT` trains as one of the workers in TF_CONFIG, or resumes OUT; with DIE_AT=STEP in the
environment it kills itself after that step.
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
from gitseg_tf.config.loss import LOSSES, LossConfig
from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.errors import GitsegError
from gitseg_tf.labels import UWMGI
from gitseg_tf.models.build import build_model
from gitseg_tf.runs.folder import read_history
from gitseg_tf.training import setup, trainer
from gitseg_tf.training.callbacks.recorder import EpochBars
from gitseg_tf.training.distribute.strategy import choose_strategy
from gitseg_tf.training.losses import build_loss, training_loss

# The learning rate is small because Adam amplifies rounding differences: it divides by the size of small gradients.
SETTINGS = {
    "data.input_size": [32, 32],
    "data.window_slices": 3,
    "data.fold": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "model.levels": 2,  # most of the time goes to tracing the graph
    "training.epochs": 2,
    "training.learning_rate": 1e-4,
    "training.precision": "float32",
    "evaluation.threshold": 0.05,
}


# A lower encoder rate, averaged weights with their own statistics, micro-batches and a legacy optimizer. The large
# epsilon of Yogi does not amplify rounding differences.
OPTIMIZED = {
    "training.optimizer": "Addons>Yogi",
    "training.learning_rate": 1e-3,
    "training.gradient_accumulation_steps": 2,
    "training.encoder_lr_multiplier": 0.5,
    "training.ema_decay": 0,
    "training.swa_epochs": 2,
}
TENSORFLOW_AUGMENT = {"augment.backend": "tensorflow", "augment.affine.p": 1.0, "augment.noise.p": 0.0}


# A second strategy in a process would restart the numbering of collective operations and confuse them with those of
# the first.
choose_strategy = setup.choose_strategy = cache(choose_strategy)


def trained(dataset, out: Path, strategy: str, epochs: int = 2, **more) -> list[dict]:
    config = load_config(None, SETTINGS | {"training.strategy": strategy, "training.epochs": epochs} | more)
    trainer.train(config, dataset, out, resume=True)
    return read_history(out)


def first_gradient(strategy: str) -> tuple[float, list]:
    """Loss of a batch with the Keras training step, and the gradient: the change of the weights by SGD at rate 1."""
    # Noise has no ties, for which rounding decides where a maximum passes its gradient. The labels are in one half of
    # the batch, so that a Dice per replica would differ.
    rng = np.random.default_rng(0)
    image = rng.random((8, 32, 32, 3), np.float32)
    mask = (rng.random((8, 32, 32, 3)) < [0.3, 0.2, 0.1]).astype(np.float32) * (np.arange(8) < 4)[:, None, None, None]
    batch = tf.data.Dataset.from_tensor_slices((image, mask)).batch(8, drop_remainder=True)
    keras.utils.set_random_seed(0)
    with choose_strategy(strategy)[0].scope():
        config = load_config(None, SETTINGS).for_dataset(UWMGI, ("image",))
        model = build_model(config, synchronized=True)
        model.compile(keras.optimizers.SGD(1.0), build_loss(config.training.loss))
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = model.fit(batch, verbose=0).history["loss"][0]
    change = [a - v.numpy() for a, v in zip(before, model.trainable_variables, strict=True)]
    return loss, np.concatenate([part.ravel() for part in change]).tolist()


def every_loss(name: str) -> dict[str, list]:
    """For each loss term alone, skipping empty labels: the losses [8] and the gradient of their mean, flattened."""
    strategy = choose_strategy(name)[0]
    share = 8 // strategy.num_replicas_in_sync
    rng = np.random.default_rng(1)
    # The second label is only in the other half of the batch, the third nowhere.
    present = np.array([[1, 0, 0]] * 4 + [[1, 1, 0]] * 4)[:, None, None]
    mask = ((rng.random((8, 9, 9, 3)) < 0.3) * present).astype(np.float32)
    # In one half of the batch the second label is unannotated; in some samples voxels are ignored.
    mask[:4, ..., 1], mask[2:6, :3] = -1, -1
    logits = rng.normal(size=mask.shape).astype(np.float32)
    losses = {}
    for name in LOSSES:
        off = {"bce": {"weight": 0}, "dice": {"weight": 0}, "boundary": {"reach": 3}, "empty_labels": "skip"}
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
        "optimized": {name: trained(dataset, out / f"optimized-{name}", name, 2, **OPTIMIZED) for name in names},
        "augmented": {
            name: trained(dataset, out / f"augmented-{name}", name, 1, **TENSORFLOW_AUGMENT) for name in names
        },
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
    except GitsegError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    role, root, out = sys.argv[1], *map(Path, sys.argv[2:])
    if role in ("compare", "eight"):
        print(json.dumps({"compare": compare, "eight": eight}[role](load_dataset(root), out)))
    else:
        work(load_dataset(root), out)
