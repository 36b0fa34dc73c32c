"""A network whose training step changes its windows at random first."""

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.data.augment.accelerator import augment_batch
from gitseg_tf.sections.augment import AugmentConfig


class AugmentedModel(keras.Model):
    """A functional model that augments inside of its compiled training step, on the device.

    The draw of a step hangs on the seed and the optimizer's step alone, and is one for the whole batch, of which each
    replica makes its share.

    Args:
        inputs, outputs, name: as for keras.Model.
        augment: which changes are made.
        seed: of the experiment.
    """

    def __init__(self, *args, augment: AugmentConfig, seed: int, **kwargs):
        super().__init__(*args, **kwargs)
        self._changes, self._seed = augment, seed
        # By XLA whether or not the whole step is: as one operation a line this would take several times as long.
        self._augment = tf.function(self._augment_share, jit_compile=True)

    def train_step(self, data):
        image, mask = data
        replica = tf.distribute.get_replica_context()
        share = image.shape[0]
        first = share * tf.cast(replica.replica_id_in_sync_group, tf.int32)
        step = tf.cast(self.optimizer.iterations, tf.int64)
        return super().train_step(self._augment(image, mask, step, first, share * replica.num_replicas_in_sync))

    def _augment_share(self, image, mask, step, first, whole_batch: int):
        seed = tf.stack([tf.constant(self._seed, tf.int64), step])
        return augment_batch(image, mask, seed, self._changes, first, whole_batch)

    def get_config(self):
        return super().get_config() | {"augment": self._changes, "seed": self._seed}
