"""A cross-validation: a folder with one run a fold, each trained on all other folds."""

from gitseg_tf.files import AnyPath, as_path

# Marks the folder; fold0, fold1, ... beside it are the runs.
MARKER = "cross_validation.yaml"


def fold_runs(path: str | AnyPath) -> list[AnyPath]:
    """The runs of a cross-validation.

    Args:
        path: any folder.

    Returns:
        The folders fold0, fold1, ... that are there, by fold; none where `path` is no cross-validation.
    """
    path = as_path(path)
    if not (path / MARKER).is_file():
        return []
    numbers = sorted(int(p.name[4:]) for p in path.iterdir() if p.name.startswith("fold") and p.name[4:].isdecimal())
    return [path / f"fold{number}" for number in numbers]
