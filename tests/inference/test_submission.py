import numpy as np
import pytest

from gitseg_tf.data.scans import read_cohort
from gitseg_tf.inference.outputs import OUTPUTS

SCANS = (("case1_day0", (48, 40), range(1, 3)), ("case2_day5", (48, 40), range(7, 8)))
ALL = "id,class,predicted\n" + "".join(
    f"{slice_id},{organ},{rle}\n"
    for slice_id, rles in {
        "case1_day0_slice_0001": ("", "", "1 3 6 1"),
        "case1_day0_slice_0002": ("12 1", "", ""),
        "case2_day5_slice_0007": ("", "1 1920", ""),
    }.items()
    for organ, rle in zip(("large_bowel", "small_bowel", "stomach"), rles, strict=True)
)


@pytest.fixture
def root(draw, tmp_path):
    return draw(tmp_path / "cohort", SCANS, labelled=False).root


def masks_of(scan):
    masks = np.zeros((3, *scan.shape), bool)
    if scan.case == "case1":
        masks[2, 0].flat[[0, 1, 2, 5]] = True
        masks[0, 1].flat[11] = True
    else:
        masks[1, 0] = True
    return masks


def write(root, out, skip=(), **options):
    said = []
    cohort = read_cohort(root, table=False, **options)
    out.mkdir()
    with OUTPUTS["submission"](cohort, out, said.append) as add:
        for scan in cohort.scans:
            if scan.id not in skip:
                add(scan, None, masks_of(scan))
    return (out / "submission.csv").read_bytes().decode(), said


def rows(*lines, ending="\n"):
    return "".join(line + ending for line in lines)


def test_without_a_sample_all_rows_are_written_in_the_order_of_the_scans(root, tmp_path):
    assert write(root, tmp_path / "out") == (ALL, [])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_rows_are_those_of_the_sample_in_its_order(root, tmp_path, ending):
    sample = rows(
        "id,class,predicted",
        "case2_day5_slice_0007,stomach,",
        "case1_day0_slice_0002,large_bowel,1 1",
        "case2_day5_slice_0007,small_bowel,",
        "case1_day0_slice_0001,stomach,",
        ending=ending,
    )
    (root / "sample_submission.csv").write_bytes(sample.encode())
    table, said = write(root, tmp_path / "out")
    assert table == rows(
        "id,class,predicted",
        "case2_day5_slice_0007,stomach,",
        "case1_day0_slice_0002,large_bowel,12 1",
        "case2_day5_slice_0007,small_bowel,1 1920",
        "case1_day0_slice_0001,stomach,1 3 6 1",
    )
    assert said == []


def test_a_sample_of_a_header_alone_asks_for_all(root, tmp_path):
    (root / "sample_submission.csv").write_text("id,class,predicted\n")
    table, said = write(root, tmp_path / "out")
    assert table == ALL and len(said) == 1 and "all slices are written" in said[0]


def test_slices_that_the_sample_does_not_ask_for_are_left_out_and_said(root, tmp_path):
    (root / "sample_submission.csv").write_text("id,class,predicted\ncase2_day5_slice_0007,stomach,\n")
    table, said = write(root, tmp_path / "out")
    assert table == "id,class,predicted\ncase2_day5_slice_0007,stomach,\n"
    assert len(said) == 1 and "does not ask for 2 slices, case1_day0_slice_0001 first" in said[0]


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("id,class\ncase9_day0_slice_0003,stomach\n", "asks for 1 slices that have no image, case9_day0_slice_0003"),
        ("id,class\ncase1_day0_slice_0001,liver\n", "unknown class 'liver'"),
        ("id,class\n" + "case1_day0_slice_0001,stomach\n" * 2, "case1_day0_slice_0001, stomach is there twice"),
        ("id,organ\n", "column class is missing"),
        ("", "cannot be read as CSV"),
    ],
)
def test_a_sample_that_cannot_be_answered_is_refused_first(root, tmp_path, refusal, sample, said):
    (root / "sample_submission.csv").write_text(sample)
    line = refusal(write, root, tmp_path / "out")
    assert said in line and "sample_submission.csv" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_of_a_scan_that_cannot_be_read_are_left_out(root, tmp_path):
    (root / "sample_submission.csv").write_text(ALL)
    slice_file = next((root / "train/case2").rglob("*.png"))
    slice_file.rename(slice_file.with_name("7.png"))
    table, said = write(root, tmp_path / "out", list_broken=True)
    assert table == rows(*ALL.splitlines()[:7]) and said == []


def test_rows_of_a_scan_that_failed_are_left_out(root, tmp_path):
    (root / "sample_submission.csv").write_text(ALL)
    table, _ = write(root, tmp_path / "out", skip=["case1_day0"])
    assert table == rows(ALL.splitlines()[0], *ALL.splitlines()[7:])
