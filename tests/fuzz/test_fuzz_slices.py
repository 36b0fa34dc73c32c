"""Damaged PNG slices, run-length strings and tables of the competition."""

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
from helpers.damage import Tally, damaged_bytes, framed_png, generator, png_bomb

from gitseg_tf.data.readers.competition import _read_table, table_rows
from gitseg_tf.data.readers.png import read_png
from gitseg_tf.data.readers.rle import mask_to_rle, rle_to_mask
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset
from gitseg_tf.inference.predict import predict_cohort
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.labels import UWMGI

pytestmark = pytest.mark.slow


def reframed(rng, png):
    """A PNG whose header or chunks are damaged, but whose checksums are right."""
    chunks, start = [], 8
    while start < len(png):
        size = int.from_bytes(png[start : start + 4], "big")
        chunks.append((png[start + 4 : start + 8], png[start + 8 : start + 8 + size]))
        start += 12 + size
    which = 0 if rng.random() < 0.7 else int(rng.integers(len(chunks)))
    kind, data = chunks[which]
    chunks[which] = kind, damaged_bytes(rng, data)
    if rng.random() < 0.1:
        chunks.insert(int(rng.integers(len(chunks))), chunks[which])
    return framed_png(chunks)


def test_png_slices(tmp_path):
    rng, tally = generator(0), Tally()
    image = rng.integers(0, 4000, (24, 20)).astype(np.uint16)
    valid = [cv2.imencode(".png", one)[1].tobytes() for one in (image, image.astype(np.uint8), np.dstack([image] * 3))]
    path = tmp_path / "slice_0001_20_24_1.50_1.50.png"
    for n in range(1500):
        png = valid[n % 3]
        damaged = reframed(rng, png) if n % 2 else damaged_bytes(rng, png)
        path.write_bytes(damaged)
        tally(damaged.hex(), read_png, path, (24, 20) if n % 4 < 2 else None)
    for width, height in ((2**15, 2**15), (2**31 - 1, 2**31 - 1), (0, 0), (2**20, 1000)):
        path.write_bytes(png_bomb(width, height))
        tally((width, height), read_png, path)
    tally.check(1504, accepted=20, refused=500)


def test_run_length_strings():
    rng, tally = generator(1), Tally()
    mask = rng.random((24, 20)) < 0.3
    alphabet = "0123456789 -+.e_,;\t\nxé٣"
    for n in range(1500):
        text = mask_to_rle(mask) if n % 2 else "1 5 20 3"
        if n % 3 == 0:
            numbers = text.split()
            numbers[rng.integers(len(numbers))] = str(
                rng.choice(["-1", "0", "9" * 18, "9" * 40, "1.5", "nan", "1_0", "+3", "481"])
            )
            text = " ".join(numbers)
        elif n % 3 == 1:
            place = int(rng.integers(len(text)))
            text = text[:place] + str(rng.choice(list(alphabet))) + text[place + int(rng.integers(3)) :]
        else:
            text = damaged_bytes(rng, text.encode()).decode("utf-8", "replace")
        tally(text, rle_to_mask, text, (24, 20))
    tally.check(1500, accepted=100, refused=500)


ROWS = "".join(
    f"case1_day0_slice_{z:04d},{name},{rle}\n"
    for z in range(1, 9)
    for name, rle in (("large_bowel", "5 9"), ("stomach", ""))
)
TABLE = ("id,class,segmentation\n" + ROWS).encode()
SUBMISSION = ("id,class,predicted\n" + ROWS).encode()


def test_tables(tmp_path):
    rng, tally = generator(2), Tally()
    path = tmp_path / "train.csv"
    for n in range(800):
        whole = (TABLE, SUBMISSION)[n % 2]
        if n % 10 == 0:
            damaged = whole.decode().encode(str(rng.choice(["utf-16", "utf-8-sig", "cp037", "utf-32"])))
        elif n % 10 == 1:
            place = int(rng.integers(len(whole)))
            damaged = (
                whole[:place]
                + bytes(rng.choice([b'"', b"\r", b"\x00", b",", b"\n", b"\xff", b'"' * 3, b"," * 9]))
                + whole[place:]
            )
        else:
            damaged = damaged_bytes(rng, whole)
        path.write_bytes(damaged)
        if n % 2:
            tally(damaged, lambda: list(table_rows(path, path.read_bytes(), ("id", "class", "predicted"))))
        else:
            tally(damaged, _read_table, path)
    tally.check(800, accepted=100, refused=100)


def test_folders_of_slices_convert_completely_or_not_at_all(make_cohort, tmp_path):
    rng, tally = generator(3), Tally()
    root = make_cohort(
        tmp_path / "cohort", [("case1_day0", (40, 64), (1, 2, 3, 4)), ("case2_day0", (40, 64), (1, 2, 3, 4))]
    ).root
    pngs, table = sorted(root.rglob("*.png")), root / "train.csv"
    names = [
        "slice_0001_64_40_1.25.png",
        "slice_0001_99999999999_24_1.5_1.5.png",
        "slice_0001_0_24_1.5_1.5.png",
        "slice_99999999999999999999999_64_40_1.25_1.50.png",
        "slice_0001_64_40_nan_1.50.png",
        "slice_1_64_40_1e9_1.50.png",
        "slice_٣_64_40_1.25_1.50.png",
        "slice_0001_64_40_" + "9" * 200 + "_1.5.png",
        "slice_0001_64_40_0.0000000000001_1.50.png",
    ]
    for n in range(150):
        path = table if n % 3 == 0 else pngs[rng.integers(len(pngs))]
        content, renamed = path.read_bytes(), None
        if n % 5 == 4 and path != table:
            renamed = path.rename(path.with_name(names[rng.integers(len(names))]))
        else:
            path.write_bytes(damaged_bytes(rng, content))
        out = tmp_path / f"records{n}"
        tally(f"{path.name} {renamed}", convert, root, out, folds=2, workers=1)
        if is_dataset(out):
            load_dataset(out, verify=True)
        assert not [left for left in out.glob(".*.tmp")] if out.exists() else True
        if renamed:
            renamed.rename(path)
        path.write_bytes(content)
    tally.check(150, accepted=2, refused=50)


class Bright(BasePredictor):
    """Segments bright voxels."""

    labels, channels, config = UWMGI, None, None

    def _predict(self, volume, probabilities):
        masks = volume.voxels > volume.voxels.mean()
        return Prediction(np.stack([masks] * 3), np.stack([masks] * 3).astype(np.float32) if probabilities else None)


@pytest.mark.parametrize("output", ["submission", "nifti"])
def test_predictions_are_complete_or_absent(make_cohort, tmp_path, output):
    rng, tally = generator(4), Tally()
    scans = [("case1_day0", (40, 64), (1, 2, 3, 4)), ("case2_day0", (40, 64), (1, 2, 3, 4))]
    root = make_cohort(tmp_path / "cohort", scans, labeled=False, folder="test").root
    pngs = sorted(root.rglob("*.png"))
    for n in range(60):
        path = pngs[rng.integers(len(pngs))]
        content = path.read_bytes()
        path.write_bytes(damaged_bytes(rng, content) if n % 6 else content)
        out = tmp_path / f"out{n}"
        done = tally(path.name, predict_cohort, "none", root, out, output=output, load=lambda models: Bright())
        predicted = {"case1_day0", "case2_day0"} if done else {"case1_day0", "case2_day0"} - {path.parent.parent.name}
        if output == "submission":
            rows = pd.read_csv(out / "submission.csv")
            assert set(rows["id"].str.rpartition("_slice")[0]) == predicted and len(rows) == 12 * len(predicted)
        else:
            volumes = [nibabel.load(file).get_fdata() for file in out.rglob("*.nii.gz")]
            assert volumes
            assert {file.relative_to(out).parts[0].partition(".")[0] for file in out.rglob("*.nii.gz")} == predicted
        assert not [file for file in out.rglob("*") if file.name.startswith(".") or file.suffix == ".tmp"]
        path.write_bytes(content)
    tally.check(60, accepted=10, refused=20)
