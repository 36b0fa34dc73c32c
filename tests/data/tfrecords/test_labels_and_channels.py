"""Any labels, channels and intensities, from files to records and back, against the original arrays."""

import csv
import json
import zlib

import nibabel
import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset, read_scans
from gitseg_tf.data.tfrecords.example import decode_scan, parse_scan, unpack_masks
from gitseg_tf.data.tfrecords.verify import verify_dataset
from gitseg_tf.data.volume import PERCENTILES
from gitseg_tf.labels import UWMGI

CASES, SHAPE, SPACING = 3, (6, 20, 16), (2.5, 0.75, 0.5)
# From voxel indices (x, y, z), which increase to the left, posterior and inferior as in the records.
AFFINE = np.diag([-SPACING[2], -SPACING[1], -SPACING[0], 1.0])
LABELS = tuple(f"label_{k:02d}" for k in range(12))


def masks_of(n, labels=12, overlap=True):
    rng = np.random.default_rng(100 + n)
    if overlap:
        return rng.random((labels, *SHAPE)) < 0.2
    numbers = rng.integers(0, labels + 1, SHAPE)
    return np.array([numbers == k + 1 for k in range(labels)])


def voxels_of(n, dtype, channels):
    rng = np.random.default_rng(n)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 300, (*SHAPE, channels)).astype(dtype)
    low, high = (-1024, 3000) if dtype == np.int16 else (0, 65536)
    return rng.integers(low, high, (*SHAPE, channels)).astype(dtype)


def save(path, volume, dtype=None):
    """Write [D, H, W] or [D, H, W, C]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.ascontiguousarray(np.swapaxes(volume, 0, 2))
    nibabel.save(nibabel.Nifti1Image(stored.astype(dtype or stored.dtype), AFFINE), path)
    return path


def numbered(masks):
    return sum(mask.astype(np.int16) * number for number, mask in enumerate(masks, 1))


def write_nnunet(root, dtype, channels, four_axes, labels=12, extra=()):
    names = {name: k for k, name in enumerate(("background", *LABELS[:labels], *extra))}
    tree = {"channel_names": {str(c): f"T{c + 1}" for c in range(channels)}, "labels": names}
    for n in range(CASES):
        voxels = voxels_of(n, dtype, channels)
        if four_axes:
            save(root / "imagesTr" / f"case{n}.nii.gz", voxels)
        else:
            for c in range(channels):
                save(root / "imagesTr" / f"case{n}_{c:04d}.nii.gz", voxels[..., c])
        save(root / "labelsTr" / f"case{n}.nii.gz", numbered(masks_of(n, labels + len(extra), overlap=False)), np.uint8)
    (root / "dataset.json").write_text(json.dumps(tree))
    return root


def write_folders(root, masks=masks_of, labels=LABELS, dtype=np.uint16, cases=CASES):
    for n in range(cases):
        save(root / f"case{n}" / "image.nii.gz", voxels_of(n, dtype, 1)[..., 0])
        for name, mask in zip(labels, masks(n), strict=True):
            if mask is not None:
                save(root / f"case{n}" / "segmentations" / f"{name}.nii.gz", mask, np.uint8)
    return root


def scans_of(dataset, folds=range(-1, 9)):
    return {scan.id: scan for scan in read_scans(dataset, folds)}


def examples_of(dataset):
    """Scan id to its serialized record."""
    records = [record for path in dataset.paths_of(range(-1, 9)) for record in tf.data.TFRecordDataset(path)]
    return {parse_scan(record)["id"].numpy().decode(): record.numpy() for record in records}


@pytest.mark.parametrize("four_axes", [False, True], ids=["a file per channel", "a 4-D file"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_twelve_labels_and_two_channels_round_trip(tmp_path, dtype, four_axes):
    dataset = convert(write_nnunet(tmp_path / "nnunet", dtype, 2, four_axes), tmp_path / "out", folds=3)
    assert dataset == verify_dataset(tmp_path / "out")
    assert dataset.labels.names == LABELS and dataset.channels == ("T1", "T2")
    scans, examples = scans_of(dataset), examples_of(dataset)
    assert sorted(scans) == sorted(examples) == ["case0", "case1", "case2"]
    for n in range(CASES):
        voxels, masks = voxels_of(n, dtype, 2), masks_of(n, overlap=False)
        scan, parsed, decoded = scans[f"case{n}"], parse_scan(examples[f"case{n}"]), decode_scan(examples[f"case{n}"])
        for volume in (scan.volume, decoded.volume):
            assert volume.voxels.dtype == dtype and np.array_equal(volume.voxels, voxels)
            assert volume.spacing == SPACING and volume.channels == 2
        for annotation in (scan.annotation, decoded.annotation):
            assert np.array_equal(annotation.masks, masks) and annotation.annotated.all() and annotation.ignore is None
        assert np.array_equal(parsed["image"], voxels.astype(np.float32))
        assert np.array_equal(unpack_masks(parsed["bits"].numpy(), 12), masks) and parsed["annotated"].numpy().all()
        for c in range(2):
            channel = voxels[..., c].astype(float)
            percentiles = np.percentile(channel, PERCENTILES, method="inverted_cdf").astype(np.float32)
            assert np.array_equal(parsed["percentiles"][c], percentiles)
            assert np.allclose(parsed["moments"][c], [channel.mean(), channel.std()], rtol=1e-6, atol=1e-4)


def test_records_can_be_read_with_plain_protobuf_and_numpy(tmp_path):
    dataset = convert(write_nnunet(tmp_path / "nnunet", np.int16, 2, False), tmp_path / "out", folds=3)
    for scan_id, record in examples_of(dataset).items():
        n, feature = int(scan_id[-1]), tf.train.Example.FromString(record).features.feature
        voxels = np.frombuffer(feature["image/voxels"].bytes_list.value[0], "<i2").reshape(2, *SHAPE)
        bits = np.frombuffer(zlib.decompress(feature["mask/bits"].bytes_list.value[0]), np.uint8).reshape(2, *SHAPE)
        assert np.array_equal(voxels, voxels_of(n, np.int16, 2).transpose(3, 0, 1, 2))
        unpacked = np.unpackbits(bits, axis=0, bitorder="little").reshape(2 * 8, *SHAPE)
        assert np.array_equal(unpacked[:12], masks_of(n, overlap=False)) and not unpacked[12:].any()


def test_channels_of_different_types_keep_their_values(tmp_path):
    write_nnunet(tmp_path / "nnunet", np.int16, 2, False)
    second = voxels_of(9, np.float32, 1)[..., 0]
    save(tmp_path / "nnunet" / "imagesTr" / "case0_0001.nii.gz", second)
    voxels = read_cohort(tmp_path / "nnunet").scans[0].read_volume().voxels
    assert voxels.dtype == np.float32 and np.array_equal(voxels[..., 1], second)
    assert np.array_equal(voxels[..., 0], voxels_of(0, np.int16, 2)[..., 0])


@pytest.mark.parametrize(("dtype", "shards"), [(np.uint16, 1), (np.int16, 1), (np.float32, 2)])
def test_the_shard_size_counts_bytes_of_the_voxel_dtype(tmp_path, dtype, shards):
    """Both scans of the first patient fit into one shard at 2 bytes per voxel, but not at 4."""
    for n, scan in enumerate(("a_day1", "a_day2", "b_day1")):
        save(tmp_path / "cohort" / scan / "image.nii.gz", voxels_of(n, dtype, 1)[..., 0])
        save(tmp_path / "cohort" / scan / "liver.nii.gz", masks_of(n, 1)[0], np.uint8)
    size = 2 * 2 * int(np.prod(SHAPE))
    dataset = convert(tmp_path / "cohort", tmp_path / "out", folds=2, shard_bytes=size)
    (fold,) = {shard.fold for shard in dataset.shards for scan in shard.scans if scan.case == "a"}
    assert [shard.fold for shard in dataset.shards].count(fold) == shards


def test_mask_files_of_twelve_labels_can_overlap(tmp_path):
    dataset = convert(write_folders(tmp_path / "folders"), tmp_path / "out", folds=3)
    for n in range(CASES):
        assert np.array_equal(scans_of(dataset)[f"case{n}"].annotation.masks, masks_of(n))


@pytest.mark.parametrize("missing", ["unannotated", "absent"])
def test_missing_and_empty_masks_are_distinguished(tmp_path, missing):
    def masks(n):
        complete = list(masks_of(n, 3))
        return [[complete[0], None, complete[2]], [complete[0], complete[1], 0 * complete[2]], [*complete[:2], None]][n]

    dataset = convert(
        write_folders(tmp_path / "folders", masks, LABELS[:3]), tmp_path / "out", folds=3, missing=missing
    )
    assert dataset == verify_dataset(tmp_path / "out")
    absent, found = missing == "absent", scans_of(dataset)
    known = {name: scan.annotation.annotated.tolist() for name, scan in found.items()}
    assert known == {"case0": [True, absent, True], "case1": [True] * 3, "case2": [True, True, absent]}
    assert not found["case0"].annotation.masks[1].any() and not found["case1"].annotation.masks[2].any()
    entries = {scan.id: scan for scan in dataset.scans_of(range(3))}
    shown = {n: masks_of(n, 3).any((2, 3)).sum(1).tolist() for n in range(CASES)}
    assert entries["case1"].label_slices == dict(zip(LABELS, [*shown[1][:2], 0], strict=False))
    assert ("label_01" in entries["case0"].label_slices) == absent
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"]["annotated_scans"]
    assert counts == {"label_00": 3, "label_01": 2 + absent, "label_02": 2 + absent}


def test_ignored_voxels_are_written_to_the_records(tmp_path):
    write_nnunet(tmp_path / "nnunet", np.uint16, 1, False, labels=3, extra=["ignore"])
    dataset = convert(tmp_path / "nnunet", tmp_path / "out", folds=3)
    assert dataset == verify_dataset(tmp_path / "out") and dataset.labels.names == LABELS[:3]
    examples = examples_of(dataset)
    for scan_id, scan in scans_of(dataset).items():
        masks = masks_of(int(scan_id[-1]), 4, overlap=False)
        assert np.array_equal(scan.annotation.masks, masks[:3]) and np.array_equal(scan.annotation.ignore, masks[3])
        assert np.array_equal(parse_scan(examples[scan_id])["ignore"], masks[3])


def test_annotated_and_unannotated_scans_can_share_a_cohort(tmp_path):
    write_folders(tmp_path / "folders", lambda n: masks_of(n) if n < 3 else [None] * 12, cases=5)
    dataset = convert(tmp_path / "folders", tmp_path / "out", folds=3)
    assert dataset == verify_dataset(tmp_path / "out") == load_dataset(tmp_path / "out", verify=True)
    files = [f"fold{k}-00000-of-00001.tfrecord" for k in range(3)]
    assert sorted(shard.file for shard in dataset.shards) == [*files, "unlabeled-00000-of-00001.tfrecord"]
    assert sorted(scan.id for scan in dataset.scans_of([-1])) == ["case3", "case4"]
    assert dataset.training_folds(0) == [1, 2]
    for scan in read_scans(dataset, [-1]):
        assert scan.annotation is None and scan.fold == -1
        assert np.array_equal(scan.volume.voxels, voxels_of(int(scan.id[-1]), np.uint16, 1)[..., 0])
    assert all(not scan.label_slices and scan.empty_slices == 0 for scan in dataset.scans_of([-1]))
    inside = [voxels_of(n, np.uint16, 1)[masks_of(n).any(0)].astype(float) for n in range(3)]
    assert dataset.intensities[0].voxels == sum(map(len, inside))
    assert dataset.intensities[0].mean == pytest.approx(np.concatenate(inside).mean(), rel=1e-6)


def test_excluding_all_annotated_scans_leaves_a_dataset_without_folds(tmp_path):
    write_folders(tmp_path / "folders", lambda n: masks_of(n) if n < 1 else [None] * 12)
    dataset = convert(tmp_path / "folders", tmp_path / "out", exclude=["case0"])
    assert dataset.folds == 0 and [shard.fold for shard in dataset.shards] == [-1]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_intensities_of_each_channel_match_numpy(tmp_path, dtype):
    dataset = convert(write_nnunet(tmp_path / "nnunet", dtype, 2, True, labels=3), tmp_path / "out", folds=3)
    inside = [masks_of(n, 3, overlap=False).any(0) for n in range(CASES)]
    values = [voxels_of(n, dtype, 2)[inside[n]].astype(float) for n in range(CASES)]
    entries = {scan.id: scan.intensities for scan in dataset.scans_of(range(3))}
    for n in range(CASES):
        for c, actual in enumerate(entries[f"case{n}"]):
            expected = (
                values[n][:, c].mean(),
                values[n][:, c].std(),
                *np.percentile(values[n][:, c], [0.5, 99.5], method="inverted_cdf"),
            )
            assert actual.voxels == len(values[n])
            assert (actual.mean, actual.std, actual.p005, actual.p995) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    everything = np.concatenate(values)
    for c, actual in enumerate(dataset.intensities):
        assert actual.voxels == len(everything)
        assert actual.mean == pytest.approx(everything[:, c].mean(), rel=1e-5, abs=1e-3)
        assert actual.std == pytest.approx(everything[:, c].std(), rel=1e-5)


def test_intensities_without_masks_cover_the_whole_scan(tmp_path):
    write_folders(tmp_path / "folders", lambda n: [None], ["liver"])
    dataset = convert(tmp_path / "folders", tmp_path / "out")
    assert dataset.intensities[0].voxels == CASES * np.prod(SHAPE)
    for scan in dataset.scans_of([-1]):
        voxels = voxels_of(int(scan.id[-1]), np.uint16, 1).astype(float)
        assert scan.intensities[0].voxels == voxels.size
        assert scan.intensities[0].mean == pytest.approx(voxels.mean(), rel=1e-6)


def test_table_classes_become_the_labels_of_the_dataset(make_cohort, rows_of, save_table, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", [(f"case{n}_day0", (40, 64), range(1, 8)) for n in range(3)])
    names = {"large_bowel": "liver", "small_bowel": "spleen", "stomach": "aorta"}
    save_table(cohort.root, [(slice_id, names[name], rle) for slice_id, name, rle in rows_of(cohort.scans)])
    dataset = convert(cohort.root, tmp_path / "out", folds=3)
    assert dataset.labels.names == ("aorta", "liver", "spleen")
    for scan in read_scans(dataset, range(3)):
        assert np.array_equal(scan.annotation.masks, cohort[scan.id].masks[[2, 0, 1]])


def test_given_labels_become_the_labels_of_the_dataset(make_cohort, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", [(f"case{n}_day0", (40, 64), range(1, 8)) for n in range(3)])
    dataset = convert(cohort.root, tmp_path / "out", folds=3, labels=UWMGI.subset(["stomach", "large_bowel"]))
    assert dataset.labels == UWMGI.subset(["stomach", "large_bowel"])
    for scan in read_scans(dataset, range(3)):
        assert np.array_equal(scan.annotation.masks, cohort[scan.id].masks[[2, 0]])


def test_a_table_with_256_classes_is_refused_and_nothing_is_written(make_cohort, tmp_path, refusal):
    cohort = make_cohort(tmp_path / "cohort", [("case1_day0", (40, 64), range(1, 5))], labeled=False)
    with open(cohort.root / "train.csv", "w", newline="") as file:
        rows = [("case1_day0_slice_0001", f"class{k}", "") for k in range(256)]
        csv.writer(file).writerows([("id", "class", "segmentation"), *rows])
    assert "train.csv: 256 labels are too many" in refusal(convert, cohort.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_255_classes_are_written_to_the_records(make_cohort, tmp_path):
    cohort = make_cohort(
        tmp_path / "cohort", [(f"case{n}_day0", (40, 64), range(1, 3)) for n in range(2)], labeled=False
    )
    with open(cohort.root / "train.csv", "w", newline="") as file:
        rows = [(f"{scan.id}_slice_0002", f"c{k:03d}", f"{k + 1} 2") for scan in cohort.scans for k in range(255)]
        csv.writer(file).writerows([("id", "class", "segmentation"), *rows])
    dataset = convert(cohort.root, tmp_path / "out", folds=2)
    assert dataset == verify_dataset(tmp_path / "out") and len(dataset.labels) == 255
    for scan in read_scans(dataset, range(2)):
        flat = scan.annotation.masks.reshape(255, 2, -1)
        assert not flat[:, 0].any() and scan.annotation.annotated.all()
        assert all(np.flatnonzero(flat[k, 1]).tolist() == [k, k + 1] for k in range(255))
