"""Suggestions for mistyped commands and options."""

import difflib
from collections.abc import Iterable

# Names of these settings in other tools.
_COMMON = {
    "lr": "training.learning_rate",
    "wd": "training.weight_decay",
    "optim": "training.optimizer",
    "arch": "model.architecture",
    "model": "model.architecture",
    "encoder": "model.backbone",
    "size": "data.input_size",
    "image_size": "data.input_size",
    "img_size": "data.input_size",
    "patience": "training.early_stopping_patience",
    "amp": "training.precision",
}
_SECTIONS = ("data", "model", "training", "evaluation")


def suggestion(word: str, known: Iterable[str], *, config_keys: bool = False) -> str:
    """Suggest what a mistyped word could mean.

    Args:
        word: a command or an option, with its dashes.
        known: the existing commands or options.
        config_keys: whether the command has --set for any config key.

    Returns:
        "; did you mean ...?", or "" if nothing is similar.
    """
    names = {option.lstrip("-"): option for option in known}
    name = word.lstrip("-")
    key = _config_key(name.replace("-", "_")) if config_keys else None
    if key is None:
        # Without the dashes, which would make all short options similar.
        near = difflib.get_close_matches(name, names, n=1)
        return f"; did you mean {names[near[0]]}?" if near else ""
    return f"; did you mean --set {key}=...?"


def _config_key(name: str) -> str | None:
    """Find the config key that an option is named after: its common or its last name, or an unambiguous part of it."""
    if name in _COMMON:
        return _COMMON[name]
    from gitseg_tf.config import load_config

    config = load_config()
    keys = {f"{section}.{key}" for section in _SECTIONS for key in type(getattr(config, section)).model_fields}
    keys.add("seed")
    same = [key for key in keys if key.split(".")[-1] == name]
    if not same and len(name) > 3:
        same = [key for key in keys if key.split(".")[-1].startswith(name)]
    return same[0] if len(same) == 1 else None
