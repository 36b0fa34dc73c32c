"""Which model makes a mask: its name, the version of this package, and a hash of its weights. No TensorFlow."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from gitseg_tf import __version__
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.inference.exported import exported_config, exported_file, exported_version
from gitseg_tf.runs.cross_validation import fold_runs
from gitseg_tf.runs.ensemble import RunEnsemble, runs_of
from gitseg_tf.runs.run import Run, load_run, weights_digest

UNKNOWN = "unknown"
_SHORT = 8


@dataclass(frozen=True)
class ModelIdentity:
    """What tells two models apart in reports and in DICOM files.

    Attributes:
        name: name of the experiment, of the served model, or of several models joined by "+".
        version: version of this package.
        weights: SHA-256 of the weights in hexadecimal, or "unknown", as for a server.

    Example:
        >>> model = ModelIdentity("uwmgi", "0.1.0", "3f5a9c0d" + 56 * "0")
        >>> model.short_weights, model.label
        ('3f5a9c0d', 'uwmgi 3f5a9c0d')
        >>> model.text
        'model uwmgi, weights 3f5a9c0d, gitseg 0.1.0'
    """

    name: str
    version: str = __version__
    weights: str = UNKNOWN

    @property
    def short_weights(self) -> str:
        """The first 8 characters of the hash."""
        return self.weights[:_SHORT]

    @property
    def label(self) -> str:
        """At most 16 characters, the limit of DICOM's SH: the first 7 of the name, and the hash."""
        return f"{self.name[:7]} {self.short_weights}"

    @property
    def text(self) -> str:
        """The name, the short hash and the version in one line."""
        return f"model {self.name}, weights {self.short_weights}, gitseg {self.version}"


def model_identity(models: str | AnyPath | Sequence[str | AnyPath]) -> ModelIdentity:
    """Identify a model, or an ensemble.

    A run and its SavedModel in float32 have the same weights and so the same hash. Other exports, whose weights may be
    rounded, have the hash of their own file. The hash of an ensemble is that of its models' hashes.

    Args:
        models: runs, exports or cross-validations, see `load_predictor`.

    Returns:
        The identity.

    Raises:
        RunError: no model at a path.
        ConfigError: its config is damaged.
    """
    listed = [models] if isinstance(models, str) or not isinstance(models, Sequence) else models
    single = [one for path in map(as_path, listed) for one in (fold_runs(path) or [path])]
    return joint_identity([_identity_of(path) for path in single])


def joint_identity(models: Sequence[ModelIdentity]) -> ModelIdentity:
    """Identify an ensemble by the identities of its models, which are one or more.

    Example:
        >>> joint_identity([ModelIdentity("a", "1"), ModelIdentity("b", "1")])
        ModelIdentity(name='a+b', version='1', weights='unknown')
    """
    if len(models) == 1:
        return models[0]
    weights = [model.weights for model in models]
    joined = UNKNOWN if UNKNOWN in weights else hashlib.sha256(" ".join(weights).encode()).hexdigest()
    return ModelIdentity("+".join(dict.fromkeys(model.name for model in models)), models[0].version, joined)


def run_identity(run: Run) -> ModelIdentity:
    """Identify a run by its name and its best weights."""
    return ModelIdentity(run.config.name, weights=weights_digest(run))


def runs_identity(model: Run | RunEnsemble) -> ModelIdentity:
    """Identify a run or an ensemble; the hash of an ensemble.yaml also depends on its weights."""
    joint = joint_identity([run_identity(run) for run in runs_of(model)])
    if not isinstance(model, RunEnsemble) or model.weights is None:
        return joint
    rounded = [[f"{share:.6f}" for share in shares] for shares in model.weights]
    digest = hashlib.sha256(f"{joint.weights} {rounded}".encode()).hexdigest()
    return ModelIdentity(model.config.name, weights=digest)


def _identity_of(path: AnyPath) -> ModelIdentity:
    exported = exported_file(path)
    if exported is not None:
        return ModelIdentity(exported_config(exported).name, weights=_digest(exported))
    version = exported_version(path)
    if version is None:
        return run_identity(load_run(path))
    config = exported_config(version)
    weights = config.provenance.get("best_weights")
    if not weights or not _in_float32(version):
        return ModelIdentity(config.name, weights=_digest(version / "saved_model.pb"))
    # The SavedModel of an ensemble lists the hashes of its runs.
    runs = weights if isinstance(weights, list) else [weights]
    return joint_identity([ModelIdentity(config.name, weights=str(one)) for one in runs])


def _in_float32(version: AnyPath) -> bool:
    path = version / "assets.extra" / "model.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["weights"] == "float32")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: AnyPath) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
