"""Measurements and phantoms that are kept in --out, so that a script that was killed continues with what is missing."""

import json
import sys
from pathlib import Path

from against_time import recipe_of

from gitseg_tf.phantom import make_phantom


def require_same_options(folder, options, may_change=()):
    """Exit if the folder holds measurements made with other options.

    Args:
        folder: the folder of --out, which exists.
        options: from argparse. `out` may change; of a file, such as a config, the content must be the same.
        may_change: names of other options that may change, such as seeds, because they only choose what to measure.
    """
    path = folder / "options.json"
    now = {key: _shown(value) for key, value in vars(options).items() if key not in {"out", *may_change}}
    before = json.loads(path.read_text()) if path.is_file() else now
    if changed := [key for key in sorted(now.keys() | before) if now.get(key) != before.get(key)]:
        was = ", ".join(f"{key} {before.get(key)}" for key in changed)
        sys.exit(f"{folder}: holds measurements with {was}; choose another --out, or repeat these options")
    path.write_text(json.dumps(now, indent=1))


def stored(path, measure):
    """Return the result of `measure()` and keep it in a JSON file; if the file exists, return its content instead."""
    if not path.is_file():
        result = measure()
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(result))
        partial.replace(path)
    return json.loads(path.read_text())


def phantom_in(folder, **settings):
    """Return the phantom in a folder; generate it with the settings of `make_phantom` if the folder does not exist."""
    return folder if folder.exists() else make_phantom(folder, **settings)


def _shown(value):
    return recipe_of(value) if isinstance(value, Path) and value.is_file() else str(value)
