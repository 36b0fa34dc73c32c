"""A network whose training step changes its windows at random first."""

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import AugmentConfig
from gitseg_tf.data.augment.accelerator import augment_batch


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

    def train_step(self, data):
        image, mask = data
        replica = tf.distribute.get_replica_context()
        share = image.shape[0]
        first = share * tf.cast(replica.replica_id_in_sync_group, tf.int32)
        seed = tf.stack([tf.constant(self._seed, tf.int64), tf.cast(self.optimizer.iterations, tf.int64)])
        whole_batch = share * replica.num_replicas_in_sync
        return super().train_step(augment_batch(image, mask, seed, self._changes, first, whole_batch))

    def get_config(self):
        return super().get_config() | {"augment": self._changes, "seed": self._seed}
