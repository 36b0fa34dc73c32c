"""Log the curves and images of TensorBoard to Weights & Biases."""

from types import ModuleType

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.errors import DependencyError

_ID = "wandb-id.txt"


def import_wandb() -> ModuleType:
    """Import the package wandb.

    Raises:
        DependencyError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        fix = "pip install 'gitseg-tf[wandb]', or set it to null"
        raise DependencyError(f"training.wandb: the package wandb cannot be imported ({error}); {fix}") from None
    return wandb


class WandbLogger:
    """Logs to a run of the project config.training.wandb, named after the run's folder; resuming continues it.

    It is a context manager: leaving it finishes the run, marked as failed after an exception. See `tensorboard.Logger`.

    Args:
        run: the run's folder; wandb-id.txt is written to it, and wandb/ if it is local.
        config: the experiment, shown next to the curves.

    Raises:
        DependencyError: wandb is not installed, or does not start (no login, no network, no such project).
    """

    def __init__(self, run: AnyPath, config: Config):
        self._wandb = import_wandb()
        id_file = run / _ID
        known = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else None
        try:
            self._run = self._wandb.init(
                project=config.training.wandb,
                name=run.name,
                id=known,
                resume="allow",
                dir=None if "://" in str(run) else str(run),
                config=config.model_dump(mode="json"),
            )
        except self._wandb.Error as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            fix = "log in with `wandb login`, set WANDB_MODE=offline, or set it to null"
            raise DependencyError(f"training.wandb: Weights & Biases cannot be started ({reason}); {fix}") from None
        if known is None:
            write_atomically(id_file, f"{self._run.id}\n".encode())

    def write(self, epoch: int, scalars: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        """Log an epoch, see `tensorboard.Logger`."""
        shown = {f"overlays/{title}": self._wandb.Image(picture) for title, picture in pictures.items()}
        self._run.log({**scalars, **shown}, step=epoch)

    def __enter__(self) -> "WandbLogger":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
