import cv2
import numpy as np

from gitseg_tf.cli import main


def test_the_preview_shows_each_augmentation_of_the_same_windows(tiny_cohort, tiny_dataset, tmp_path, capsys):
    out = tmp_path / "changes.png"
    assert main(["augment", str(out), "--data", str(tiny_dataset.root), "--set", "data.input_size=[64,64]"]) == 0
    assert str(out) in capsys.readouterr().out
    picture = cv2.imread(str(out)).astype(int)
    rows = 8
    height, width = picture.shape[0] // rows, picture.shape[1] // 2
    blocks = [picture[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(rows) for c in (0, 1)]
    plain = blocks[0][30:]
    assert np.ptp(plain) > 200
    changed = [np.abs(block[30:] - plain).mean() > 0.1 for block in blocks[1:15]]
    assert all(changed), changed


def test_an_invalid_range_is_refused(tmp_path, capsys):
    assert main(["augment", str(tmp_path / "x.png"), "--set", "augment.blur.sigma=9"]) == 1
    assert "augment.blur.sigma must be less than or equal to 5, got 9" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
