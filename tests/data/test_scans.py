import pytest

from gitseg_tf.data.scans import ORGANS, is_cohort, organ_named, read_cohort, read_image, source_digest
from gitseg_tf.files import as_path


@pytest.fixture
def bucket(drawn):
    """The drawn cohort in TensorFlow's file system in memory."""
    root = as_path("ram://bucket/cohort")
    for path in drawn.root.rglob("*"):
        if path.is_file():
            target = root / path.relative_to(drawn.root).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.write(path.read_bytes())
    return root


def test_a_remote_cohort_is_the_local_one(bucket, drawn):
    remote, local = read_cohort(str(bucket)), read_cohort(drawn.root)
    assert is_cohort(str(bucket)) and remote.labelled
    assert remote.fingerprint == local.fingerprint
    assert source_digest(list(remote.scans)) == source_digest(list(local.scans))
    assert [scan.id for scan in remote.scans] == [scan.id for scan in local.scans]
    assert all((read_image(scan) == drawn[scan.id].image).all() for scan in remote.scans)


def test_a_remote_folder_without_slices_says_that_the_others_are_read_from_disks(refusal):
    folder = as_path("ram://bucket/nifti/imagesTr")
    folder.mkdir(parents=True)
    line = refusal(read_cohort, "ram://bucket/nifti")
    assert line.startswith("ram://bucket/nifti: no slices found") and "copy NIfTI and DICOM to a local folder" in line


def test_a_remote_folder_that_is_not_there_is_named(refusal):
    assert "ram://bucket/none: no such folder" in refusal(read_cohort, "ram://bucket/none")


def test_a_folder_of_no_layout_is_told_all_of_them(tmp_path, refusal):
    (tmp_path / "notes.txt").write_text("nothing")
    line = refusal(read_cohort, tmp_path)
    assert all(name in line for name in ("train.csv", "imagesTr/", "DICOM"))


@pytest.mark.parametrize(
    ("name", "organ"),
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
def test_names_of_organs(name, organ):
    assert organ_named(name) == organ
    assert organ is None or organ in ORGANS
