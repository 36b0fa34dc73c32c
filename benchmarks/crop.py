"""What `data.crop: body` gives: the pixel of a scan in the model's input, and what of its contours comes through.

Masks go down to the model's grid, are cut at one half there as those that a network is trained on, and go back to their
own; the Dice with the masks as they were is what a network that repeats its training masks reaches. The peer of the
claims is crop: none.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from gitseg_tf import quiet
from gitseg_tf.data.phantom import make_phantom


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 scans of the phantom")
    parser.add_argument("--data", type=Path, help="a cohort with contours (a phantom, made on the way)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256], help="sides of the model's input")
    options = parser.parse_args()
    quiet.import_tensorflow()
    with tempfile.TemporaryDirectory() as place:
        cohort = options.data or make_phantom(Path(place) / "phantom", cases=3 if options.quick else 10, days=1)
        facts = measure(cohort, options.sizes)
    for line in report(facts, options.sizes):
        print(line)


def measure(cohort, sizes):
    from gitseg_tf.data.geometry import from_model, place, to_model
    from gitseg_tf.data.records import intensity_percentiles
    from gitseg_tf.data.scans import read_cohort, read_image, read_masks
    from gitseg_tf.progress import progress
    from gitseg_tf.sections.data import DataConfig

    facts = []
    for scan in progress(read_cohort(cohort).scans, "crop", unit="scan"):
        image, masks = read_image(scan), read_masks(scan)
        percentiles, spacing = intensity_percentiles(image), np.float32(scan.spacing)
        for size in sizes:
            for crop in ("none", "body"):
                placement = place(image, percentiles, spacing, DataConfig(size=(size, size), crop=crop))
                y, x, height, width = placement["box"].numpy()
                shape, size_2d = np.int32(scan.shape[1:]), (size, size)
                trained = [to_model(mask.astype(np.float32), placement, size_2d).numpy() >= 0.5 for mask in masks]
                returned = [
                    from_model(mask[..., None].astype(np.float32), placement, shape).numpy()[..., 0] >= 0.5
                    for mask in trained
                ]
                facts.append(
                    {
                        "size": size,
                        "crop": crop,
                        "geometry": f"{scan.shape[2]} x {scan.shape[1]}",
                        "pixel": float(spacing[1] * height / placement["fitted"][0].numpy()),
                        "area": float(height * width / np.prod(scan.shape[1:])),
                        "cut": int(masks.sum() - masks[:, :, y : y + height, x : x + width].sum()),
                        "dice": [
                            2 * (a & b).sum() / (a.sum() + b.sum())
                            for a, b in zip(masks, returned, strict=True)
                            if a.any()
                        ],
                    }
                )
    return facts


def report(facts, sizes):
    yield f"{'input':>5}  {'crop':5}{'scans':>6}{'area kept':>11}{'pixel mm':>10}{'voxels cut off':>16}{'Dice':>14}"
    means = {}
    for size in sizes:
        for crop in ("none", "body"):
            for geometry in [*sorted({fact["geometry"] for fact in facts}), "all"]:
                chosen = [
                    f for f in facts if (f["size"], f["crop"]) == (size, crop) and geometry in ("all", f["geometry"])
                ]
                dice = np.mean([d for fact in chosen for d in fact["dice"]])
                area, pixel = (np.mean([fact[key] for fact in chosen]) for key in ("area", "pixel"))
                cut = sum(fact["cut"] for fact in chosen)
                yield (f"{size:5}  {crop:5}{len(chosen):6}{area:11.2f}{pixel:10.2f}{cut:16}{dice:14.4f}  {geometry}")
                means[size, crop, geometry] = dice
    for size in sizes:
        ours, peer = (1 - means[size, crop, "all"] for crop in ("body", "none"))
        claim = {"claim": f"Dice lost by the grid alone at {size} x {size}, crop body against none"}
        yield json.dumps(
            claim | {"ours": round(ours, 5), "peer": round(peer, 5), "unit": "1 - Dice", "ratio": round(peer / ours, 2)}
        )


if __name__ == "__main__":
    main()
