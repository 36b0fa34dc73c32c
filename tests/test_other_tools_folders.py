"""All commands on the folders of nnU-Net and of the Decathlon, whose dataset.json is not that of gitseg."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.configs import SETTINGS

from gitseg_tf.cli import main
from gitseg_tf.viewer.catalog import open_library

pytestmark = pytest.mark.slow
SCANS = tuple((f"case{n}_day0", (40, 64), range(1, 9)) for n in range(1, 4))
TINY = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
LABELS = ("large_bowel", "small_bowel", "stomach")


@pytest.fixture(scope="module", params=["nnU-Net", "nnU-Net with NRRD", "Decathlon"])
def folder(request, make_cohort, nifti, tmp_path_factory):
    """The folder, and the synthetic scans in it; imagesTs/ has the image of the first one."""
    root, truth = tmp_path_factory.mktemp("folder"), make_cohort(tmp_path_factory.mktemp("truth") / "c", SCANS)
    channel = "" if request.param == "Decathlon" else "_0000"
    ending = ".nrrd" if "NRRD" in request.param else ".nii.gz"

    def save(path, volume, affine, dtype=None):
        path.parent.mkdir(exist_ok=True)
        if ending == ".nii.gz":
            nifti.save(path, volume, affine, dtype)
            return
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, dtype))
        spacing, lps = np.linalg.norm(affine[:3, :3], axis=0), np.diag([-1.0, -1, 1, 1]) @ affine
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, str(path))

    for scan in truth.scans:
        affine = nifti.affine_of(scan, "RAS")
        label = nifti.stored_as(nifti.label_map(nifti.without_overlaps(scan.masks)), "RAS")
        image = nifti.stored_as(scan.image, "RAS")
        save(root / "imagesTr" / f"{scan.id}{channel}{ending}", image, affine)
        save(root / "labelsTr" / f"{scan.id}{ending}", label, affine, np.uint8)
        if scan is truth.scans[0]:
            save(root / "imagesTs" / f"{scan.id}{channel}{ending}", image, affine)
    if request.param == "Decathlon":
        (root / "imagesTr" / "._case1_day0.nii.gz").write_bytes(b"left by macOS")
        names = {"0": "background"} | {str(n): name for n, name in enumerate(LABELS, 1)}
        tree = {"name": "Gut", "tensorImageSize": "3D", "modality": {"0": "MRI"}, "labels": names, "numTraining": 3}
        pairs = [{"image": f"./imagesTr/{s.id}{ending}", "label": f"./labelsTr/{s.id}{ending}"} for s in truth.scans]
        tree |= {"training": pairs, "test": []}
    else:
        names = {"background": 0} | {name: n for n, name in enumerate(LABELS, 1)}
        tree = {"channel_names": {"0": "MRI"}, "labels": names, "numTraining": 3, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(tree))
    return root, truth


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run that was trained on the folder itself."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        assert main(["train", "--data", str(folder[0]), "--out", "run", "--fold", "0", *TINY]) == 0
    return work / "run"


def test_labels_and_inspect_describe_the_folder(folder, tmp_path, capsys):
    assert main(["labels", str(folder[0])]) == 0
    assert [line[8:] for line in capsys.readouterr().out.splitlines() if line.startswith("- name:")] == list(LABELS)
    assert main(["inspect", str(folder[0]), "--out", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "3 patients, 3 scans, 24 slices" in out and "label      stomach: 3 scans" in out


def test_convert_and_its_dry_run_count_the_labels(folder, tmp_path, capsys):
    root, truth = folder
    counts = [int(sum(s.masks[k].any((1, 2)).sum() for s in truth.scans)) for k in range(2)]
    for arguments in (["--dry-run"], [str(tmp_path / "out"), "--folds", "3"]):
        assert main(["convert", str(root), *arguments]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [name for name, *_ in rows if name in LABELS][-3:] == list(LABELS)
        assert ["large_bowel", "3", "0", "0", str(counts[0])] in rows


def test_augment_draws_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["augment", "warp.png", "--data", str(folder[0]), *TINY]) == 0
    assert (tmp_path / "warp.png").stat().st_size > 10_000


def test_view_lists_images_and_contours(folder):
    root, truth = folder
    library = open_library(root)
    assert [entry.id for entry in library.entries] == [scan.id for scan in truth.scans]
    assert library.labels.names == LABELS and not any(entry.broken for entry in library.entries)
    for entry, scan in zip(library.entries, truth.scans, strict=True):
        assert np.array_equal(entry.read_volume().voxels, scan.image) and entry.read_contours() is not None


def test_a_run_is_trained_evaluated_and_predicts_the_test_images_on_their_grid(folder, run, tmp_path, nifti):
    root, truth = folder
    assert (run / "evaluation.json").is_file()
    assert main(["evaluate", str(run), "--data", str(root)]) == 0
    assert main(["predict", str(run), str(root), str(tmp_path / "out"), "--format", "labelmap"]) == 0
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    image = nibabel.load(path)
    assert path.name == f"{truth.scans[0].id}.nii.gz" and image.shape == (64, 40, 8)
    assert np.allclose(image.affine, nifti.affine_of(truth.scans[0], "RAS"), atol=1e-4)
