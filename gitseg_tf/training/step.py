"""The training step, shared by all networks, optimizers, losses and strategies."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.augment.tensorflow import augment_batch
from gitseg_tf.models.build import logits_of
from gitseg_tf.training.distribute.replicated import change_variables
from gitseg_tf.training.losses import training_loss
from gitseg_tf.training.metrics import StreamingDice
from gitseg_tf.training.optim.averages import weight_average
from gitseg_tf.training.optim.freezing import freezing_of
from gitseg_tf.training.optim.layer_rates import rate_shares
from gitseg_tf.training.optim.optimizers import build_optimizer, decays
from gitseg_tf.training.optim.schedules import Schedule


class TrainingModel(keras.Model):
    """A functional model with a custom training step.

    The step performs, in this order: augmentation of the windows (augment.backend: tensorflow); forward and backward
    passes of `training.gradient_accumulation_steps` parts of the batch, whose gradients are averaged; clipping by the
    global norm over all replicas; decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101) of kernels; the
    optimizer's update, scaled down for layers with a lower learning rate and for frozen ones; and the update of the
    averaged weights.

    Part j of k consists of every k-th window starting at j, so that the parts of several replicas together equal those
    of one device. Losses and batch normalization that reduce over the batch reduce over a part.

    Args:
        inputs, outputs, name: as for keras.Model; outputs are logits, or a dict with "logits".
        config: the experiment, prepared by `Config.for_dataset`.
        schedule: function from the step to the learning rate.
        loss: function from (mask [N, ..., L], outputs) to float32 [N].
        loaded: names of the layers whose weights were loaded, for training.freeze_epochs.
        steps_per_epoch: number of steps per epoch, for the same.

    Attributes:
        schedule: the argument of that name.
        loss_of: the loss.
        average: a WeightAverage, updated in each step; set by `training_model`.
        freezing: which layers are held back for how long; None for none.
    """

    def __init__(
        self,
        *args,
        config: Config,
        schedule: Schedule,
        loss,
        loaded: frozenset[str] = frozenset(),
        steps_per_epoch: int = 1,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self.average: Any = None
        self._settings, self.loss_of = config, loss
        self.freezing = freezing_of(self, loaded, config.training, steps_per_epoch)
        # Wrapped in objects, because Keras would treat variables and metrics that are attributes of a model as part of
        # its weights. Freezing changes trainable_variables, but not the variables of the optimizer.
        self._updated = SimpleNamespace(
            variables=list(self.trainable_variables), shares=rate_shares(self, config.training)
        )
        self._measures = SimpleNamespace(
            loss=keras.metrics.Mean(name="loss"),
            dice=StreamingDice(config.label_set.names, config.evaluation.threshold),
        )
        # Compile with XLA even if the step as a whole is not: separate operations would take several times as long.
        self._augment = tf.function(self._augment_share, jit_compile=True)
        self._forward: Callable | None = None

    @property
    def metrics(self):
        """The mean loss and the Dice, which Keras resets in each epoch."""
        return [self._measures.loss, self._measures.dice]

    def train_step(self, data):
        image, mask = self._augmented(*data)
        step = tf.identity(self.optimizer.iterations)
        variables, gradients = self._gradients(image, mask)
        self._update(variables, gradients, step)
        if self.average is not None:
            self.average.follow(step)
        return self.get_metrics_result()

    def test_step(self, data):
        image, mask, weight = keras.utils.unpack_x_y_sample_weight(data)
        if weight is not None:
            # Losses that reduce over the batch ignore the weights, so the padding must be excluded voxel by voxel.
            padding = tf.reshape(weight, [-1, *[1] * (mask.shape.rank - 1)]) <= 0.0
            mask = tf.where(padding, tf.cast(-1.0, mask.dtype), mask)
        outputs = self(image, training=False)
        self._measure(mask, outputs, self.loss_of(mask, outputs), weight)
        return self.get_metrics_result()

    def pass_forward(self, batch) -> None:
        """Update only the statistics of batch normalization, with a distributed batch."""

        def forward(image, mask):
            self(self._augmented(image, mask)[0], training=True)

        if self._forward is None:
            self._forward = tf.function(lambda batch: self.distribute_strategy.run(forward, args=batch))
        self._forward(batch)

    def _augmented(self, image, mask):
        if self._settings.augment.backend != "tensorflow":
            return image, mask
        replica = tf.distribute.get_replica_context()
        share = image.shape[0]
        first = share * tf.cast(replica.replica_id_in_sync_group, tf.int32)
        step = tf.cast(self.optimizer.iterations, tf.int64)
        return self._augment(image, mask, step, first, share * replica.num_replicas_in_sync)

    def _augment_share(self, image, mask, step, first, whole_batch: int):
        # The random parameters depend only on the seed and the step; each replica takes its part of them.
        seed = tf.stack([tf.constant(self._settings.seed, tf.int64), step])
        return augment_batch(
            image, mask, seed, self._settings.augment,
            first=first, whole_batch=whole_batch, labels=len(self._settings.label_set),
        )  # fmt: skip

    def _gradients(self, image, mask):
        """Compute the gradients on this replica, summed over the parts, with the variables that have a gradient."""
        parts = self._settings.training.gradient_accumulation_steps
        totals: Any = None
        for part in range(parts):
            # Start when the previous part is done, so that only one part is in memory at a time.
            with tf.control_dependencies([] if totals is None else [g for g in totals if g is not None]):
                windows, masks = tf.identity(image[part::parts]), tf.identity(mask[part::parts])
            gradients = self._gradients_of_part(windows, masks, parts)
            if totals is None:
                totals = gradients
            else:
                totals = [None if g is None else t + g for t, g in zip(totals, gradients, strict=True)]
        if self._scales_loss():
            totals = self.optimizer.get_unscaled_gradients(totals)
        pairs = [(v, g) for v, g in zip(self._updated.variables, totals, strict=True) if g is not None]
        return zip(*pairs, strict=True)

    def _gradients_of_part(self, image, mask, parts: int):
        with tf.GradientTape() as tape:
            outputs = self(image, training=True)
            losses = self.loss_of(mask, outputs)
            loss = tf.reduce_mean(losses) / (parts * self.distribute_strategy.num_replicas_in_sync)
            if self._scales_loss():
                loss = self.optimizer.get_scaled_loss(loss)
        self._measure(mask, outputs, losses)
        return tape.gradient(loss, self._updated.variables)

    def _update(self, variables, gradients, step) -> None:
        training, rate = self._settings.training, self.schedule(step)
        gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        held = self.freezing
        # Frozen layers must not affect the clipping of the others.
        norm = tf.linalg.global_norm(held.active(variables, gradients, step) if held else gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, training.clip_norm, use_norm=norm)
        shares: dict[int, Any] = {
            id(v): share for v, share in zip(self._updated.variables, self._updated.shares, strict=True)
        }
        if held:
            fraction = held.share(step)
            shares |= {key: share * fraction for key, share in shares.items() if key in held.variables}
        slowed = [v for v in variables if tf.is_tensor(shares[id(v)]) or shares[id(v)] != 1.0]
        before = [tf.identity(variable) for variable in slowed]
        if training.weight_decay:
            # If loss scaling skips a step because of its gradients, the weights must not decay either.
            lost = tf.where(tf.math.is_finite(norm), rate * training.weight_decay, 0.0)
            decayed = [variable for variable in variables if decays(variable)]
            change_variables(lambda v, lost: v.assign_sub(lost * v), decayed, [lost] * len(decayed))
        pairs = zip(gradients, variables, strict=True)
        self.optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)
        if slowed:
            change_variables(
                lambda v, before, share: v.assign(before + share * (v - before)),
                slowed,
                before,
                [tf.convert_to_tensor(shares[id(variable)]) for variable in slowed],
            )

    def _measure(self, mask, outputs, losses, weight=None) -> None:
        self._measures.loss.update_state(losses, weight)
        # The probabilities of a teacher follow the labels.
        self._measures.dice.update_state(mask[..., : len(self._settings.label_set)], logits_of(outputs), weight)

    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer)


def training_model(
    network: keras.Model,
    config: Config,
    steps_per_epoch: int,
    *,
    schedule=None,
    loaded: frozenset[str] = frozenset(),
) -> TrainingModel:
    """Create a compiled TrainingModel from a network, ready for `fit`; call it in the strategy's scope.

    Args:
        network: from `build_model`.
        config: the experiment.
        steps_per_epoch: number of training steps per epoch.
        schedule: a Keras LearningRateSchedule that replaces the config's.
        loaded: names of the layers whose weights were loaded, which training.freeze_epochs freezes.

    Returns:
        The model, which shares the network's layers.

    Raises:
        ConfigError: the optimizer does not exist.
    """
    training = config.training
    schedule = schedule or Schedule(training, steps_per_epoch * training.epochs)
    model = TrainingModel(
        network.inputs,
        network.output,
        name=network.name,
        config=config,
        schedule=schedule,
        loss=training_loss(training.loss),
        loaded=loaded,
        steps_per_epoch=steps_per_epoch,
    )
    scales_loss = network.dtype_policy.name == "mixed_float16"
    optimizer = build_optimizer(training, schedule, model.trainable_variables, scales_loss=scales_loss)
    model.compile(optimizer, weighted_metrics=[], jit_compile=training.jit_compile)
    # Metrics already cover all replicas; by default Keras would sum them over the workers in the logs of callbacks.
    model.distribute_reduction_method = "first"
    model.average = weight_average(model, training, steps_per_epoch)
    return model
