"""Paths in buckets, shown on TensorFlow's file system in memory, against pathlib on the disk."""

import itertools

import pytest

from gitseg_tf.files import RemotePath, as_path, file_size, remove_tree, write_atomically

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
def test_glob_finds_what_pathlib_finds(folder, pattern, found):
    assert {path.relative_to(folder).as_posix() for path in folder.glob(pattern)} == found


def test_a_written_file_reads_back_and_leaves_no_other(folder):
    path = folder / "new.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"three")
    assert path.read_bytes() == b"three"
    assert file_size(path) == 5
    assert {child.name for child in folder.iterdir()} == {"a.txt", "train", "new.bin"}


def test_files_and_folders_are_told_apart(folder):
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


def test_parts_of_a_remote_path():
    path = as_path("gs://bucket/a/../b/file.tar.gz")
    assert isinstance(path, RemotePath)
    assert (str(path), path.name, path.stem, path.suffix) == (
        "gs://bucket/b/file.tar.gz",
        "file.tar.gz",
        "file.tar",
        ".gz",
    )
    assert str(path.parent / "other") == "gs://bucket/b/other"
