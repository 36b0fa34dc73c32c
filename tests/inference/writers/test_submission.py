import numpy as np
import pytest

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.labels import UWMGI, LabelSet

SCANS = (("case1_day0", (48, 40), range(1, 3)), ("case2_day5", (48, 40), range(7, 8)))
ALL = "id,class,predicted\n" + "".join(
    f"{slice_id},{label},{rle}\n"
    for slice_id, rles in {
        "case1_day0_slice_0001": ("", "", "1 3 6 1"),
        "case1_day0_slice_0002": ("12 1", "", ""),
        "case2_day5_slice_0007": ("", "1 1920", ""),
    }.items()
    for label, rle in zip(("large_bowel", "small_bowel", "stomach"), rles, strict=True)
)


@pytest.fixture
def root(make_cohort, tmp_path):
    return make_cohort(tmp_path / "cohort", SCANS, labeled=False).root


def masks_of(scan):
    masks = np.zeros((3, *scan.shape), bool)
    if scan.case == "case1":
        masks[2, 0].flat[[0, 1, 2, 5]] = True
        masks[0, 1].flat[11] = True
    else:
        masks[1, 0] = True
    return masks


@pytest.fixture
def write(caplog):
    """write(root, out) writes a submission and returns its text and the logged messages."""
    caplog.set_level("INFO", "gitseg_tf")

    def written(root, out, skip=(), **options):
        cohort = read_cohort(root, table=False, **options)
        out.mkdir()
        with open_writer("submission", cohort, out, UWMGI) as writer:
            for scan in cohort.scans:
                if scan.id not in skip:
                    writer.write(scan, None, Prediction(masks_of(scan)))
        return (out / "submission.csv").read_bytes().decode(), caplog.messages

    return written


def rows(*lines, ending="\n"):
    return "".join(line + ending for line in lines)


def test_without_a_sample_all_rows_are_written_in_scan_order(write, root, tmp_path):
    assert write(root, tmp_path / "out") == (ALL, [])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_rows_follow_the_sample_submission(write, root, tmp_path, ending):
    sample = rows(
        "id,class,predicted",
        "case2_day5_slice_0007,stomach,",
        "case1_day0_slice_0002,large_bowel,1 1",
        "case2_day5_slice_0007,small_bowel,",
        "case1_day0_slice_0001,stomach,",
        ending=ending,
    )
    (root / "sample_submission.csv").write_bytes(sample.encode())
    table, messages = write(root, tmp_path / "out")
    assert table == rows(
        "id,class,predicted",
        "case2_day5_slice_0007,stomach,",
        "case1_day0_slice_0002,large_bowel,12 1",
        "case2_day5_slice_0007,small_bowel,1 1920",
        "case1_day0_slice_0001,stomach,1 3 6 1",
    )
    assert messages == []


def test_a_sample_with_only_a_header_selects_all_slices(write, root, tmp_path):
    (root / "sample_submission.csv").write_text("id,class,predicted\n")
    table, messages = write(root, tmp_path / "out")
    assert table == ALL and len(messages) == 1 and "all slices are written" in messages[0]


def test_slices_missing_from_the_sample_are_left_out_and_reported(write, root, tmp_path):
    (root / "sample_submission.csv").write_text("id,class,predicted\ncase2_day5_slice_0007,stomach,\n")
    table, messages = write(root, tmp_path / "out")
    assert table == "id,class,predicted\ncase2_day5_slice_0007,stomach,\n"
    assert len(messages) == 1 and "does not list 2 slices, first case1_day0_slice_0001; left out" in messages[0]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("id,class\ncase9_day0_slice_0003,stomach\n", "lists 1 slice without an image, first case9_day0_slice_0003"),
        ("id,class\ncase1_day0_slice_0001,liver\n", "unknown class 'liver'"),
        ("id,class\n" + "case1_day0_slice_0001,stomach\n" * 2, "case1_day0_slice_0001, stomach is listed twice"),
        ("id,organ\n", "column class is missing"),
        ("", "cannot be read as CSV"),
    ],
)
def test_an_invalid_sample_is_refused_before_writing(write, root, tmp_path, refusal, sample, expected):
    (root / "sample_submission.csv").write_text(sample)
    line = refusal(write, root, tmp_path / "out")
    assert expected in line and "sample_submission.csv" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_of_an_unreadable_scan_are_left_out(write, root, tmp_path):
    (root / "sample_submission.csv").write_text(ALL)
    slice_file = next((root / "train/case2").rglob("*.png"))
    slice_file.rename(slice_file.with_name("7.png"))
    table, messages = write(root, tmp_path / "out", list_broken=True)
    assert table == rows(*ALL.splitlines()[:7]) and messages == []


def test_rows_of_a_scan_that_failed_are_left_out(write, root, tmp_path):
    (root / "sample_submission.csv").write_text(ALL)
    table, _ = write(root, tmp_path / "out", skip=["case1_day0"])
    assert table == rows(ALL.splitlines()[0], *ALL.splitlines()[7:])


def test_labels_outside_the_competition_get_a_table_but_no_submission(root, tmp_path, refusal):
    cohort, labels = read_cohort(root, table=False), LabelSet.of("stomach", "liver")
    line = refusal(open_writer("submission", cohort, tmp_path, labels).__enter__)
    assert line.startswith("the label 'liver' is not a class of the competition") and "such as table" in line
    with open_writer("table", cohort, tmp_path, labels) as writer:
        for scan in cohort.scans:
            writer.write(scan, None, Prediction(masks_of(scan)[:2]))
    first, *lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert first == "id,class,segmentation" and len(lines) == 6
    assert lines[2] == "case1_day0_slice_0002,stomach,12 1" and lines[5] == "case2_day5_slice_0007,liver,1 1920"


def test_a_submission_with_some_classes_leaves_the_others_empty(root, tmp_path):
    cohort = read_cohort(root, table=False)
    with open_writer("submission", cohort, tmp_path, UWMGI.subset(["stomach"])) as writer:
        for scan in cohort.scans:
            writer.write(scan, None, Prediction(masks_of(scan)[2:]))
    expected = ALL.replace("12 1", "").replace("1 1920", "")
    assert (tmp_path / "submission.csv").read_text() == expected
