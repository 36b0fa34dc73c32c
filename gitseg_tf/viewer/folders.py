"""Restrict reading to files that, after resolving links, lie in the folders given by the user."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from gitseg_tf.core.paths import AnyPath, RemotePath
from gitseg_tf.errors import DataError


class GivenFolders:
    """The folders given by the user. Buckets have no links and are not checked.

    Args:
        paths: the folders or files; links given here are followed.
    """

    def __init__(self, paths: Iterable[AnyPath]):
        self._roots = tuple(Path(os.path.realpath(path)) for path in paths if not isinstance(path, RemotePath))

    def check(self, paths: Iterable[AnyPath]) -> None:
        """Reject files that lie elsewhere.

        Args:
            paths: files found under the given folders.

        Raises:
            DataError: a link leads out of the given folders; the message names the file and its target.
        """
        real_folder = lru_cache(maxsize=None)(os.path.realpath)
        for path in paths:
            if isinstance(path, RemotePath):
                continue
            # Each folder is resolved only once for all its files.
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(path.parent), path.name)
            if not any(Path(real).is_relative_to(root) for root in self._roots):
                raise DataError(
                    f"{path}: points to {real}, outside the given folders; allow the folder {os.path.dirname(real)}, "
                    "or replace the link by a copy"
                )

    def check_top(self, folder: AnyPath) -> None:
        """Reject a folder that contains a link to a file elsewhere, such as its table.

        Raises:
            DataError: see `check`.
        """
        if isinstance(folder, Path) and folder.is_dir():
            self.check(path for path in folder.iterdir() if path.is_file())
