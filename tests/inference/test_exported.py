import pytest

from gitseg_tf.inference.exported import exported_version


def save(*folders):
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").touch()


@pytest.mark.parametrize(
    "versions, taken", [(["1"], "1"), (["1", "2"], "2"), (["2"], "2"), (["9", "10"], "10"), (["1", "latest"], "1")]
)
def test_the_highest_version_is_used(tmp_path, versions, taken):
    save(*(tmp_path / version for version in versions))
    assert exported_version(tmp_path) == tmp_path / taken


def test_an_explicit_version_is_used(tmp_path):
    save(tmp_path / "1", tmp_path / "2")
    assert exported_version(tmp_path / "1") == tmp_path / "1"


def test_an_unfinished_version_is_skipped(tmp_path):
    save(tmp_path / "1")
    (tmp_path / "2").mkdir()
    assert exported_version(tmp_path) == tmp_path / "1"


def test_a_path_without_a_savedmodel_has_no_version(tmp_path):
    (tmp_path / "file").touch()
    assert [exported_version(tmp_path / name) for name in (".", "file", "missing")] == [None] * 3
