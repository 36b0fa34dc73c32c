"""Errors caused by the user's input. Each message is one line: what is wrong, where, and how to fix it."""

import re

_LONGEST_LINE = 300  # characters; libraries quote values, which in damaged files may be megabytes


class GitsegError(Exception):
    """Base class of all errors that the user can fix; the message says what is wrong, where, and how to fix it.

    Example:
        >>> try:
        ...     raise DataError("scans/ct.nii.gz: has no voxels; export the scan again")
        ... except GitsegError as error:
        ...     print(error)
        scans/ct.nii.gz: has no voxels; export the scan again
    """


class ConfigError(GitsegError):
    """A config key, an option or an argument has a value that is not allowed, or two of them contradict each other.

    Example:
        >>> from gitseg_tf import load_config
        >>> try:
        ...     load_config(None, {"training.epochs": 0})
        ... except ConfigError as error:
        ...     print(error)
        config: training.epochs must be greater than or equal to 1, got 0
    """


class DataError(GitsegError):
    """A cohort, a dataset or one of its files is missing, damaged or ambiguous.

    Example:
        >>> from gitseg_tf import open_cohort
        >>> try:
        ...     open_cohort("no_such_folder")
        ... except DataError:
        ...     print("choose another folder")
        choose another folder
    """


class ScanError(DataError):
    """One scan cannot be segmented; the others are unaffected.

    Example:
        >>> issubclass(ScanError, DataError)
        True
    """


class RunError(GitsegError):
    """A run, a checkpoint or an exported model is missing, damaged, in use, or does not fit its intended use.

    Example:
        >>> from gitseg_tf import load
        >>> try:
        ...     load("no_such_run")  # doctest: +SKIP
        ... except RunError:
        ...     print("choose another folder")
    """


class DependencyError(GitsegError):
    """A package or an external program is missing or has an incompatible version.

    Example:
        >>> issubclass(DependencyError, GitsegError)
        True
    """


class ServerError(GitsegError):
    """A model server cannot be reached, rejects a request, or returns an invalid response.

    Example:
        >>> issubclass(ServerError, GitsegError)
        True
    """


def first_line(error: Exception) -> str:
    """Return the first line of a library's exception, cut, and without the operation that TensorFlow adds to it."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    line = re.sub(r"^{{.*?}} | \[Op:\w*\].*$", "", line)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
