"""Remote paths, tested with TensorFlow's in-memory file system, against pathlib on the disk."""

import itertools
from pathlib import Path

import pytest

from gitseg_tf.core.paths import (
    RemotePath,
    as_path,
    file_size,
    local_copy,
    remove_tree,
    replace_folder,
    write_atomically,
    written_locally,
)

FILES = ("a.txt", "train/case1/x.png", "train/case1/y.csv", "train/case2/deep/z.png")
_names = itertools.count()


@pytest.fixture(params=["disk", "ram"])
def folder(request, tmp_path):
    root = tmp_path if request.param == "disk" else as_path(f"ram://test-files-{next(_names)}")
    for name in FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, name.encode())
    return root


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", {"a.txt", "train"}),
        ("**/*.png", {"train/case1/x.png", "train/case2/deep/z.png"}),
        ("train/*/y.csv", {"train/case1/y.csv"}),
        ("none*", set()),
    ],
)
def test_glob_matches_pathlib(folder, pattern, found):
    assert {path.relative_to(folder).as_posix() for path in folder.glob(pattern)} == found


def test_an_atomic_write_leaves_no_temporary_file(folder):
    path = folder / "new.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"three")
    assert path.read_bytes() == b"three"
    assert file_size(path) == 5
    assert {child.name for child in folder.iterdir()} == {"a.txt", "train", "new.bin"}


def test_files_and_folders_are_distinguished(folder):
    assert (folder / "train").is_dir() and not (folder / "train").is_file()
    assert (folder / "a.txt").is_file() and not (folder / "a.txt").is_dir()
    assert not (folder / "nothing").exists()


def test_a_missing_file_is_named(folder):
    with pytest.raises(FileNotFoundError) as caught:
        (folder / "nothing").read_bytes()
    assert str(caught.value.filename) == str(folder / "nothing")


def test_a_tree_is_removed(folder):
    remove_tree(folder / "train")
    remove_tree(folder / "train")
    assert {child.name for child in folder.iterdir()} == {"a.txt"}


def test_a_remote_path_has_the_parts_of_pathlib():
    path = as_path("gs://bucket/a/../b/file.tar.gz")
    assert isinstance(path, RemotePath)
    assert (str(path), path.name, path.stem, path.suffix) == (
        "gs://bucket/b/file.tar.gz",
        "file.tar.gz",
        "file.tar",
        ".gz",
    )
    assert str(path.parent / "other") == "gs://bucket/b/other"


def test_write_bytes_replaces_the_content(folder):
    (folder / "a.txt").write_bytes(b"longer than before, then")
    (folder / "a.txt").write_bytes(b"short")
    assert (folder / "a.txt").read_bytes() == b"short"


def test_a_local_copy_keeps_bytes_and_suffix_and_is_cleaned_up(folder):
    with local_copy(folder / "train/case1/x.png") as copy:
        assert isinstance(copy, Path) and copy.suffix == ".png"
        assert copy.read_bytes() == b"train/case1/x.png"
    assert copy.exists() == (copy == folder / "train/case1/x.png")


def test_a_local_copy_of_a_missing_file_is_named(folder):
    with pytest.raises(FileNotFoundError) as caught, local_copy(folder / "nothing") as copy:
        copy.read_bytes()
    assert str(caught.value.filename) == str(folder / "nothing")


def test_a_file_written_locally_replaces_the_old_file(folder):
    with written_locally(folder / "a.txt") as path:
        assert isinstance(path, Path) and path.suffix == ".txt"
        path.write_bytes(b"new")
        assert (folder / "a.txt").read_bytes() == b"a.txt"
    assert (folder / "a.txt").read_bytes() == b"new"
    assert not path.exists() and {child.name for child in folder.iterdir()} == {"a.txt", "train"}


def test_a_failed_local_write_leaves_the_old_file(folder):
    with pytest.raises(ValueError, match="halfway"), written_locally(folder / "a.txt") as path:
        path.write_bytes(b"ha")
        raise ValueError("halfway")
    assert (folder / "a.txt").read_bytes() == b"a.txt"
    assert not path.exists() and {child.name for child in folder.iterdir()} == {"a.txt", "train"}


def fill(folder):
    (folder / "deep").mkdir()
    (folder / "deep/values").write_bytes(b"values")
    (folder / "marker").write_bytes(b"marker")


def test_a_folder_is_replaced_as_a_whole(folder):
    with replace_folder(folder / "train", "marker") as filled:
        fill(filled)
        assert (folder / "train/case1/x.png").is_file() and not (folder / "train/marker").exists()
    found = {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()}
    assert found == {"a.txt", "train/deep/values", "train/marker"}
    assert (folder / "train/deep/values").read_bytes() == b"values"
    assert not filled.exists()


def test_a_folder_that_could_not_be_written_changes_nothing(folder):
    with pytest.raises(ValueError, match="halfway"), replace_folder(folder / "train", "marker") as filled:
        fill(filled)
        raise ValueError("halfway")
    assert {path.relative_to(folder).as_posix() for path in folder.glob("**/*") if path.is_file()} == set(FILES)
    assert not filled.exists()


def test_the_marker_is_copied_to_a_bucket_last(monkeypatch):
    import tensorflow as tf

    target, copied, copy = as_path(f"ram://test-files-{next(_names)}/1"), [], tf.io.gfile.copy

    def watched(source, to, overwrite=False):
        copied.append(to)
        copy(source, to, overwrite)

    monkeypatch.setattr(tf.io.gfile, "copy", watched)
    with replace_folder(target, "marker") as filled:
        fill(filled)
        (filled / "zebra").write_bytes(b"after the marker by name")
    assert copied[-1] == str(target / "marker") and len(copied) == 3


def test_renaming_a_folder_in_a_bucket_is_refused():
    root = as_path(f"ram://test-files-{next(_names)}")
    (root / "old").mkdir(parents=True)
    (root / "old/file").write_bytes(b"content")
    with pytest.raises(IsADirectoryError):
        (root / "old").replace(root / "new")
    assert (root / "old/file").read_bytes() == b"content"


def test_an_unknown_scheme_is_an_oserror_that_names_the_file():
    with pytest.raises(OSError) as caught:
        as_path("nosuch://bucket/file").exists()
    assert str(caught.value.filename) == "nosuch://bucket/file" and "nosuch" in caught.value.strerror
