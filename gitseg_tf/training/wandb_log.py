"""Weights & Biases, for who has it: the curves and pictures that TensorBoard gets."""

from types import ModuleType

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, write_atomically

_ID = "wandb-id.txt"


def import_wandb() -> ModuleType:
    """The package wandb.

    Raises:
        InputError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        cure = "pip install 'gitseg-tf[wandb]', or set it to null"
        raise InputError(f"training.wandb: the package wandb cannot be imported ({error}); {cure}") from None
    return wandb


class WandbLogger:
    """A run of the project config.training.wandb, named after the run's folder; a resumed run goes on in the same one.

    A context manager: leaving it finishes the run, as failed where an exception passes. See `tensorboard.Logger`.

    Args:
        run: the run's folder; gets wandb-id.txt, and on this machine wandb/.
        config: the experiment, shown beside the curves.

    Raises:
        InputError: wandb is not installed, or refuses to begin: no login, no network, no such project.
    """

    def __init__(self, run: AnyPath, config: Config):
        self._wandb = import_wandb()
        place = run / _ID
        known = place.read_text(encoding="utf-8").strip() if place.is_file() else None
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
            cure = "log in with `wandb login`, set WANDB_MODE=offline, or set it to null"
            raise InputError(f"training.wandb: Weights & Biases does not begin ({reason}); {cure}") from None
        if known is None:
            write_atomically(place, f"{self._run.id}\n".encode())

    def write(self, epoch: int, scalars: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        """See `tensorboard.Logger`."""
        shown = {f"overlays/{title}": self._wandb.Image(picture) for title, picture in pictures.items()}
        self._run.log({**scalars, **shown}, step=epoch)

    def __enter__(self) -> "WandbLogger":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
