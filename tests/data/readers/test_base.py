import pytest

from gitseg_tf.core.paths import as_path
from gitseg_tf.data.readers.base import source_digest
from gitseg_tf.data.readers.registry import is_cohort, read_cohort
from gitseg_tf.labels import UWMGI


@pytest.fixture
def bucket(tiny_cohort):
    """The synthetic cohort in TensorFlow's in-memory file system."""
    root = as_path("ram://bucket/cohort")
    for path in tiny_cohort.root.rglob("*"):
        if path.is_file():
            target = root / path.relative_to(tiny_cohort.root).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.write(path.read_bytes())
    return root


def test_a_remote_cohort_equals_the_local_one(bucket, tiny_cohort):
    remote, local = read_cohort(str(bucket)), read_cohort(tiny_cohort.root)
    assert is_cohort(str(bucket)) and remote.labeled
    assert remote.fingerprint == local.fingerprint
    assert source_digest(list(remote.scans)) == source_digest(list(local.scans))
    assert [scan.id for scan in remote.scans] == [scan.id for scan in local.scans]
    assert all((scan.read_volume().voxels == tiny_cohort[scan.id].image).all() for scan in remote.scans)


def test_a_remote_folder_without_slices_suggests_a_local_copy(refusal):
    folder = as_path("ram://bucket/nifti/imagesTr")
    folder.mkdir(parents=True)
    line = refusal(read_cohort, "ram://bucket/nifti")
    assert line.startswith("ram://bucket/nifti: no slices found") and "copy NIfTI and DICOM to a local folder" in line


def test_a_missing_remote_folder_is_named(refusal):
    assert "ram://bucket/none: no such folder" in refusal(read_cohort, "ram://bucket/none")


def test_a_folder_without_a_known_layout_is_refused_with_all_layouts(tmp_path, refusal):
    (tmp_path / "notes.txt").write_text("nothing")
    line = refusal(read_cohort, tmp_path)
    assert all(name in line for name in ("train.csv", "imagesTr/", "DICOM"))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Bowel_Large", "large_bowel"),
        ("LARGE BOWEL", "large_bowel"),
        ("colon", "large_bowel"),
        ("Bowel-Small", "small_bowel"),
        ("small_intestine", "small_bowel"),
        ("Stomach ", "stomach"),
        ("stomach_prv", None),
        ("bowel", None),
        ("PTV", None),
        ("", None),
    ],
)
def test_label_names_are_matched_regardless_of_spelling(name, label):
    matched = UWMGI.match(name)
    assert (matched.name if matched else None) == label
