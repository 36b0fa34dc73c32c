"""What may be read: files that lie, wherever links lead, in the folders that the user gave."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, RemotePath


class GivenFolders:
    """The folders that the user gave. Buckets have no links, and are left out of all checks.

    Args:
        paths: of the folders or files; a link given here is followed.
    """

    def __init__(self, paths: Iterable[AnyPath]):
        self._roots = tuple(Path(os.path.realpath(path)) for path in paths if not isinstance(path, RemotePath))

    def check(self, paths: Iterable[AnyPath]) -> None:
        """Refuse files that lie elsewhere.

        Args:
            paths: as they are found under the given folders.

        Raises:
            InputError: a link leads out of the given folders; the line names the file and where it leads.
        """
        real_folder = lru_cache(maxsize=None)(os.path.realpath)
        for path in paths:
            if isinstance(path, RemotePath):
                continue
            # A folder is looked up once for all its files.
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(path.parent), path.name)
            if not any(Path(real).is_relative_to(root) for root in self._roots):
                raise InputError(
                    f"{path}: leads to {real}, outside of the given folders; allow it with "
                    f"--allow {os.path.dirname(real)}, or put a copy in its place"
                )

    def check_top(self, folder: AnyPath) -> None:
        """Refuse a folder with a file in it, such as its table, that lies elsewhere.

        Raises:
            InputError: as `check`.
        """
        if isinstance(folder, Path) and folder.is_dir():
            self.check(path for path in folder.iterdir() if path.is_file())
