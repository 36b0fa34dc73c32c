"""The network of a run."""

import tf_keras as keras

from gitseg_tf.core.paths import local_copy
from gitseg_tf.errors import RunError, first_line
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.runs.run import Run


def load_model(run: Run, precision: str = "float32", *, presence: bool = False) -> keras.Model:
    """Build a run's network and load its best weights.

    Args:
        run: from `load_run` or `train`.
        precision: Keras dtype policy, as for `build_model`.
        presence: keep the presence head, which the run must have.

    Returns:
        Model from float32 [N, H, W, K * C] or [N, D, H, W, C] to float32 logits [N, ..., L], without the heads that
        are only used in training. With `presence`, a dict of these `logits` and `presence` [N, L].

    Raises:
        RunError: the weights do not fit the config.
    """
    model = build_model(run.config, precision)
    with local_copy(run.weights) as weights:
        try:
            model.load_weights(weights)
        except (ValueError, OSError, KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
            cause = f"does not fit the network of {run.path / 'config.yaml'} ({first_line(error)})"
            raise RunError(f"{run.weights}: {cause}; restore both files of the run") from None
    kept = {name: model.output[name] for name in ("logits", "presence")} if presence else logits_of(model.output)
    return keras.Model(model.input, kept, name=model.name)
