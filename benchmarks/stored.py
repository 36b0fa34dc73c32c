"""Measurements that are kept in --out, so that a script that was killed continues with the missing ones."""

import json
import sys


def require_same_options(folder, options, may_change=()):
    """End the script if the folder has measurements with other options than these.

    Args:
        folder: of --out; it exists.
        options: from argparse. `out` may change.
        may_change: names of other options that may, such as seeds, because they choose what is measured, not how.
    """
    path = folder / "options.json"
    now = {key: str(value) for key, value in vars(options).items() if key not in {"out", *may_change}}
    before = json.loads(path.read_text()) if path.is_file() else now
    if changed := [key for key in sorted(now.keys() | before) if now.get(key) != before.get(key)]:
        was = ", ".join(f"{key} {before.get(key)}" for key in changed)
        sys.exit(f"{folder}: has measurements with {was}; choose another --out, or repeat these options")
    path.write_text(json.dumps(now, indent=1))


def stored(path, measure):
    """The result of `measure()`, which a JSON file keeps; it is measured only if the file does not exist."""
    if not path.is_file():
        result = measure()
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(result))
        partial.replace(path)
    return json.loads(path.read_text())
