"""3-D Dice on held-out cases after some minutes of training on the CPU, compared with nnU-Net at equal time.

    python benchmarks/nnunet.py --peer-python PATH [--data DIR --fold 0] [--minutes 3 20 60] [--out DIR] [--quick]

The peer is nnU-Net 2.8 itself (peers/nnunet_timed.py): its planning, preprocessing, network, augmentation and
inference. Ours is `python train.py --config auto --minutes M` or a given config, without pretrained weights. Each point
is a training of its own on the cases of the fold's `train`, whose minutes are training time on both sides, without
start-up, planning, conversion and prediction. Label maps of the cases of `val` are scored by the same few lines. The
data are in nnU-Net's raw layout with splits.json; without --data, spheres in noise are generated. With --out, a script
that was killed continues with the missing points.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from against_time import ROOT, Results, add_arguments, measure_all, plot, print_claims, print_table, run, train_ours

PEER = ROOT / "benchmarks" / "peers" / "nnunet_timed.py"
# For --quick, because the probes of `auto` take longer than its trainings.
QUICK = """
data: {patch: [16, 32, 32], batch_size: 4}
model: {architecture: unet3d, filters: 8, levels: 3}
training: {ema_decay: 0.9}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, minutes=[3, 20, 60], peer_minutes=[20])
    parser.add_argument("--data", type=Path, help="a folder in nnU-Net's raw layout, with splits.json (generated)")
    parser.add_argument("--fold", type=int, default=0, help="entry of splits.json (%(default)s)")
    parser.add_argument("--config", help="our recipe: auto (the default), or a file, with as many epochs as fit")
    parser.add_argument("--peer-python", help="a Python with torch and nnunetv2; without it, only ours is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = (options.out or Path(temporary)).resolve()
        workspace.mkdir(parents=True, exist_ok=True)
        if options.quick:
            options.minutes, options.peer_minutes, options.seeds = [0.2], [0.2], options.seeds[:1]
            if options.config is None:
                options.config = workspace / "quick.yaml"
                options.config.write_text(QUICK)
        data = (options.data or spheres(workspace / "spheres", 12)).resolve()
        results = Results(workspace / "results.csv", f"{data.name}, fold {options.fold}")
        config, tests = options.config or "auto", split(data, options.fold, workspace)

        def ours(minutes, seed):
            out = workspace / f"ours-{Path(config).stem}-{minutes:g}-{seed}"
            trained = train_ours(config, workspace / "records", minutes=minutes, seed=seed, out=out)
            predict = [sys.executable, "-m", "gitseg_tf", "predict", out, workspace / "test", out / "masks"]
            run([*predict, "--format", "labelmap"], workspace / "predict.log")
            return scores(data, tests, out / "masks") | {"trained_minutes": trained}

        def peer(minutes, seed):
            out = workspace / f"peer-{minutes:g}-{seed}"
            command = [options.peer_python, PEER, workspace / "training", workspace / "test", out]
            command += ["--work", workspace / "nnunet", "--minutes", minutes, "--seed", seed]
            facts = json.loads(run(command, out.with_name(f"{out.name}.log")))
            return scores(data, tests, out) | {"trained_minutes": facts["minutes"]}

        measure_all(options, results, config, PEER, ours, peer)
        table = results.table()
        columns = [name for name in table.columns if name.startswith("dice")]
        print_table(table, [*columns, "trained_minutes"])
        plot(table, {"dice": f"3-D Dice of {len(tests)} held-out cases"}, workspace / "dice_against_minutes")
        print_claims(table, "dice", "mean 3-D Dice")


def split(data, fold, workspace):
    """Make the folders training/ and test/ of links, and the records of training/; return the cases of the test."""
    parts = json.loads((data / "splits.json").read_text())[fold]
    facts = json.loads((data / "dataset.json").read_text())
    ending = facts["file_ending"]
    for name, cases in (("training", parts["train"]), ("test", parts["val"])):
        for folder in ("imagesTr", "labelsTr"):
            (workspace / name / folder).mkdir(parents=True, exist_ok=True)
        links = [("labelsTr", f"{case}{ending}") for case in cases]
        links += [("imagesTr", path.name) for case in cases for path in data.glob(f"imagesTr/{case}_????{ending}")]
        for folder, file in links:
            if not (workspace / name / folder / file).exists():
                os.symlink(data / folder / file, workspace / name / folder / file)
        (workspace / name / "dataset.json").write_text(json.dumps(facts | {"numTraining": len(cases)}))
    if not (workspace / "records" / "dataset.json").is_file():
        convert = [sys.executable, "-m", "gitseg_tf", "convert", workspace / "training", workspace / "records"]
        run([*convert, "--folds", 2, "--resume"], workspace / "convert.log")
    return parts["val"]


def scores(data, cases, predicted):
    """3-D Dice per label, the mean over the cases in which it is present or predicted, and the mean over the labels."""
    tables = [json.loads((folder / "dataset.json").read_text()) for folder in (data, predicted)]
    names = [name for name, value in tables[0]["labels"].items() if name != "background"]
    dice = {name: [] for name in names}
    for case in cases:
        maps = [
            nibabel.as_closest_canonical(nibabel.load(folder / f"{case}{facts['file_ending']}"))
            for folder, facts in zip((data / "labelsTr", predicted), tables, strict=True)
        ]
        assert np.allclose(maps[0].affine, maps[1].affine, atol=1e-3), f"{case}: is on another grid"
        reference, found = (np.asarray(one.dataobj) for one in maps)
        for name in names:
            a, b = (m == facts["labels"][name] for m, facts in zip((reference, found), tables, strict=True))
            if a.any() or b.any():
                dice[name].append(2 * (a & b).sum() / (a.sum() + b.sum()))
    means = {f"dice_{name}": np.mean(values) for name, values in dice.items()}
    return {"dice": np.mean([*means.values()])} | means


def spheres(folder, count):
    """Write a data set of pairs of bright spheres of two kinds in noise."""
    if (folder / "splits.json").is_file():
        return folder
    random, grid, cases = np.random.default_rng(0), np.indices((36, 40, 32)), [f"case_{k:03d}" for k in range(count)]
    for case in cases:
        labels = np.zeros(grid.shape[1:], np.uint8)
        for number, x in ((1, 11), (2, 25)):
            center = np.array((x, 20, 16)) + random.integers(-4, 5, 3)
            distance = np.sqrt(((grid - center.reshape(3, 1, 1, 1)) ** 2).sum(0))
            labels[distance < random.uniform(4, 6)] = number
        image = 100 * (labels > 0) + 60 * (labels > 1) + random.normal(0, 40, labels.shape)
        for name, voxels in ((f"imagesTr/{case}_0000", image.astype(np.float32)), (f"labelsTr/{case}", labels)):
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "small": 1, "bright": 2}}
    (folder / "dataset.json").write_text(json.dumps(facts | {"numTraining": count, "file_ending": ".nii.gz"}))
    (folder / "splits.json").write_text(json.dumps([{"train": cases[:-3], "val": cases[-3:]}]))
    return folder


if __name__ == "__main__":
    main()
