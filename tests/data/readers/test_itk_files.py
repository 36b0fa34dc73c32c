"""NRRD and MetaImage files; SimpleITK writes them, and places voxels in space as an oracle."""

import gzip

import numpy as np
import pytest

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.readers.summary import describe
from gitseg_tf.labels import UWMGI

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is missing; pip install 'gitseg-tf[itk]'")

SPACING, ORIGIN = (1.25, 1.5, 3.0), (7.0, -8.0, 9.0)
TURNED = np.linalg.qr(np.array([[1, 0.2, -0.1], [-0.15, 1, 0.3], [0.2, -0.1, 1]]))[0]
DIRECTIONS = {
    "axial": np.eye(3), "flipped": np.diag([-1.0, -1, 1]), "sagittal": np.eye(3)[[2, 0, 1]], "oblique": TURNED,
}  # fmt: skip
SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def as_image(array, direction=DIRECTIONS["axial"], origin=ORIGIN, vector=False):
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing(SPACING)
    image.SetOrigin(origin)
    image.SetDirection(np.ravel(direction).tolist())
    return image


def save(path, image, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def voxels(seed=0, shape=(4, 5, 6)):
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_voxels_have_the_positions_that_simpleitk_gives_them(tmp_path, suffix, direction):
    image = as_image(voxels(), DIRECTIONS[direction])
    save(tmp_path / f"scan{suffix}", image)
    (scan,) = read_cohort(tmp_path).scans
    read, grid = scan.read_volume().voxels, scan.source.grid
    assert sorted(read.shape) == [4, 5, 6] and np.array_equal(np.sort(read, None), np.sort(voxels(), None))
    depth, height, width = read.shape
    for z, y, x in np.ndindex(depth, height, width):
        right, anterior, superior, _ = grid.records_affine @ [x, y, z, 1]
        index = image.TransformPhysicalPointToContinuousIndex([-right, -anterior, superior])
        assert np.allclose(index, np.rint(index), atol=1e-6)
        assert image.GetPixel([round(i) for i in index]) == read[z, y, x]
    # Slices run head to feet, rows to posterior, columns to the left, as far as the axes permit.
    assert (np.diag(grid.records_affine)[:3] < 0).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_and_floating_point_files_are_read(tmp_path, suffix):
    values = voxels().astype(np.float32) / 7
    save(tmp_path / f"scan{suffix}", as_image(values), compressed=True)
    (scan,) = read_cohort(tmp_path).scans
    assert np.array_equal(np.sort(scan.read_volume().voxels, None), np.sort(values, None))


def test_a_folder_per_scan_is_read_like_nifti(tmp_path, nifti):
    # ITK's LPS axes are nibabel's with the first two reversed.
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = -ORIGIN[0], -ORIGIN[1], ORIGIN[2]
    masks = {name: (voxels(k) > 0).astype(np.uint8) for k, name in enumerate(UWMGI.names)}
    save(tmp_path / "itk" / "case1_day0" / "image.nrrd", as_image(voxels()))
    nifti.save(tmp_path / "nifti" / "case1_day0" / "image.nii.gz", voxels().transpose(2, 1, 0), affine)
    for name, mask in masks.items():
        save(tmp_path / "itk" / "case1_day0" / f"{name}.mha", as_image(mask))
        nifti.save(tmp_path / "nifti" / "case1_day0" / f"{name}.nii.gz", mask.transpose(2, 1, 0), affine, np.uint8)
    ours, theirs = (read_cohort(tmp_path / kind) for kind in ("itk", "nifti"))
    assert ours.labels == theirs.labels and ours.labels.names == tuple(sorted(UWMGI.names))
    (one,), (other,) = ours.scans, theirs.scans
    assert (one.id, one.case, one.spacing, one.annotated) == (other.id, other.case, other.spacing, other.annotated)
    assert np.array_equal(one.read_volume().voxels, other.read_volume().voxels)
    assert np.array_equal(one.read_annotation().masks, other.read_annotation().masks)


def test_an_nnunet_folder_is_read(tmp_path):
    label = voxels(1) % 3
    save(tmp_path / "imagesTr" / "a_0000.mha", as_image(voxels()))
    save(tmp_path / "imagesTr" / "a_0001.mha", as_image(voxels(2)))
    save(tmp_path / "labelsTr" / "a.mha", as_image(label.astype(np.uint8)))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2}}')
    (scan,) = read_cohort(tmp_path).scans
    assert scan.read_volume().voxels.shape == (4, 5, 6, 2)
    masks = scan.read_annotation().masks
    assert masks.sum((1, 2, 3)).tolist() == [(label == 1).sum(), (label == 2).sum()]


def segmentation(values, names, numbers=None):
    image = as_image(values.astype(np.uint8))
    for k, name in enumerate(names):
        image.SetMetaData(f"Segment{k}_Name", name)
        image.SetMetaData(f"Segment{k}_LabelValue", str((numbers or range(1, 99))[k]))
        image.SetMetaData(f"Segment{k}_Layer", "0")
    return image


def test_segments_of_3d_slicer_are_labels(tmp_path, refusal):
    first, second = voxels(1) % 3, voxels(2) % 3
    save(tmp_path / "a" / "image.nrrd", as_image(voxels()))
    save(tmp_path / "a" / "Segmentation.seg.nrrd", segmentation(first, ["liver", "Left kidney"]))
    save(tmp_path / "b" / "image.nrrd", as_image(voxels()))
    save(tmp_path / "b" / "Segmentation.seg.nrrd", segmentation(second, ["Left kidney", "liver"]))
    cohort = read_cohort(tmp_path)
    assert cohort.labels.names == ("Left_kidney", "liver")
    masks = [scan.read_annotation().masks.sum((1, 2, 3)).tolist() for scan in cohort.scans]
    assert masks == [[(first == 2).sum(), (first == 1).sum()], [(second == 1).sum(), (second == 2).sum()]]
    lines = describe(tmp_path)
    assert any(line.split()[:3] == ["liver", "2", "0"] for line in lines)
    save(tmp_path / "b" / "Segmentation.seg.nrrd", as_image(second.astype(np.uint8)))
    assert "b/Segmentation.seg.nrrd: its header names no labels, but that of" in refusal(read_cohort, tmp_path)


def test_overlapping_segments_and_cropped_ones_are_refused(tmp_path, refusal):
    save(tmp_path / "a" / "image.nrrd", as_image(voxels()))
    layers = np.stack([voxels(1) > 0, voxels(2) > 0], -1).astype(np.uint8)
    path = save(tmp_path / "a" / "x.seg.nrrd", as_image(layers, vector=True))
    assert f"{path}: has 2 values per voxel (6 x 5 x 4 voxels)" in refusal(read_cohort, tmp_path)
    save(path, segmentation(voxels(1)[1:, :, :] % 2, ["liver"]))
    line = refusal(read_cohort, tmp_path)
    assert "x.seg.nrrd: its grid is 3 x 5 x 6 voxels" in line and "that of image.nrrd is 4 x 5 x 6 voxels" in line


def test_components_of_voxels_are_channels(tmp_path, refusal):
    two = np.stack([voxels(), voxels(1)], -1)
    save(tmp_path / "scan.nrrd", as_image(two, vector=True))
    (scan,) = read_cohort(tmp_path).scans
    assert np.array_equal(scan.read_volume().voxels, two[::-1])
    save(tmp_path / "scan.nrrd", as_image(np.stack([voxels()] * 9, -1), vector=True))
    assert "has 9 channels on its fourth axis, but at most 8 are supported" in refusal(read_cohort, tmp_path)


@pytest.mark.parametrize(("suffix", "data"), [(".nhdr", ".raw"), (".mhd", ".raw")])
def test_a_missing_data_file_is_named(tmp_path, refusal, suffix, data):
    save(tmp_path / f"scan{suffix}", as_image(voxels()))
    (tmp_path / f"scan{data}").unlink()
    assert f"scan{suffix}: its data file {tmp_path / f'scan{data}'} is missing; copy it, too" in refusal(
        read_cohort, tmp_path
    )


@pytest.mark.parametrize(("suffix", "field"), [(".nhdr", "data file: "), (".mhd", "ElementDataFile = ")])
def test_a_data_file_elsewhere_is_refused(tmp_path, refusal, suffix, field):
    path = save(tmp_path / "scans" / f"scan{suffix}", as_image(voxels()))
    (tmp_path / "scans" / "scan.raw").rename(tmp_path / "scan.raw")
    for name in ("../scan.raw", str(tmp_path / "scan.raw")):
        path.write_text(path.read_text().replace(f"{field}scan.raw", f"{field}{name}"))
        assert f"its data file {name} is outside its folder" in refusal(read_cohort, tmp_path / "scans")
        path.write_text(path.read_text().replace(f"{field}{name}", f"{field}scan.raw"))


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_the_fingerprint_covers_the_data_file(tmp_path, suffix):
    save(tmp_path / f"scan{suffix}", as_image(voxels()))
    before = read_cohort(tmp_path).fingerprint
    save(tmp_path / f"scan{suffix}", as_image(voxels()[:, :, :5]))
    header = (tmp_path / f"scan{suffix}").stat().st_size
    assert read_cohort(tmp_path).fingerprint != before
    assert [path.suffix for _, path in read_cohort(tmp_path).scans[0].source.files()] == [suffix, ".raw"] and header


def replaced(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("new", [b"", b"space: scanner-xyz\n"])
def test_a_nrrd_file_without_a_patient_space_is_refused(tmp_path, refusal, new):
    path = save(tmp_path / "scan.nrrd", as_image(voxels()))
    replaced(path, b"space: left-posterior-superior\n", new or b"space dimension: 3\n")
    assert "scan.nrrd: has no orientation (" in refusal(read_cohort, tmp_path)


def test_a_nrrd_file_in_another_space_has_the_same_positions(tmp_path):
    path = save(tmp_path / "scan.nrrd", as_image(voxels(), DIRECTIONS["oblique"]))
    before = read_cohort(tmp_path).scans[0].source.grid
    image = sitk.ReadImage(str(path))
    replaced(path, b"space: left-posterior-superior\n", b"space: right-anterior-superior\n")
    turned = sitk.ReadImage(str(path))
    index = (3, 2, 1)
    place, there = (np.array(one.TransformIndexToPhysicalPoint(index)) for one in (image, turned))
    assert np.allclose(place * [-1, -1, 1], there)
    after = read_cohort(tmp_path).scans[0].source.grid
    assert np.allclose(np.array(after.affine), np.diag([-1, -1, 1, 1]) @ np.array(before.affine))


def test_the_unit_of_nrrd_is_converted(tmp_path, refusal):
    path = save(tmp_path / "scan.nrrd", as_image(voxels()))
    replaced(
        path, b"space: left-posterior-superior\n", b'space: left-posterior-superior\nspace units: "cm" "cm" "cm"\n'
    )
    cohort = read_cohort(tmp_path)
    assert cohort.scans[0].spacing == (30, 15, 12.5)
    assert cohort.notes == (f"{tmp_path}: in 1 scan, the spacing is stored in cm and is converted to millimeters",)
    replaced(path, b'"cm" "cm" "cm"', b'"inch" "inch" "inch"')
    assert "its space units are inch; convert them to mm" in refusal(read_cohort, tmp_path)


def test_a_metaimage_without_a_direction_is_noted(tmp_path):
    path = save(tmp_path / "scan.mha", as_image(voxels()))
    replaced(path, b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b"")
    (note,) = read_cohort(tmp_path).notes
    assert "the header has no TransformMatrix; axes to the left, posterior and superior are assumed" in note


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_refused(tmp_path, refusal, suffix, compressed, capfd):
    path = save(
        tmp_path / f"scan{suffix}", as_image(np.random.default_rng(0).integers(0, 999, (9, 64, 64))), compressed
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    line = refusal(lambda: read_cohort(tmp_path).scans[0].read_volume())
    assert line.startswith(f"{path}: ") and "copy the file again" in line
    if (suffix, compressed) != (".mha", True):  # MetaIO prints a line of its own, which cannot be silenced
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "content", [b"", b"NRRD0004\n", b"ObjectType = Image\nNDims = 3\n", gzip.compress(b"x", mtime=0)]
)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_another_file_is_refused(tmp_path, refusal, suffix, content):
    (tmp_path / f"scan{suffix}").write_bytes(content)
    assert f"scan{suffix}: " in refusal(read_cohort, tmp_path)


def test_a_size_far_beyond_the_file_is_refused_before_memory_is_allocated(tmp_path, refusal):
    path = save(tmp_path / "scan.mha", as_image(voxels()))
    path.write_bytes(path.read_bytes().replace(b"DimSize = 6 5 4", b"DimSize = 60000 50000 4"))
    assert "scan.mha: is too small for the voxels in the header of scan.mha" in refusal(read_cohort, tmp_path)


def test_the_missing_extra_is_named(tmp_path, monkeypatch, refusal):
    save(tmp_path / "scan.mha", as_image(voxels()))
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    assert "requires pip install 'gitseg-tf[itk]'" in refusal(read_cohort, tmp_path)
