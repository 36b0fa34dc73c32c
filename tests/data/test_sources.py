import pytest

from gitseg_tf.data.sources import open_dataset


@pytest.mark.parametrize(("folds", "made", "warnings"), [(5, 2, 1), (2, 2, 0), (1, 1, 0)])
def test_a_small_cohort_is_split_into_as_many_folds_as_it_has_patients(
    make_cohort, tmp_path, monkeypatch, caplog, folds, made, warnings
):
    scans = [(f"case{case}_day{day}", (40, 64), range(1, 7)) for case in (1, 2) for day in (0, 1)]
    root = make_cohort(tmp_path / "cohort", scans).root
    monkeypatch.chdir(tmp_path)
    caplog.set_level("WARNING", "gitseg_tf")
    assert open_dataset(root, folds).folds == made
    assert caplog.messages == [f"{root} has 2 patients, so it is split into 2 folds, not 5"] * warnings
