"""Effect of `data.crop: body`: the pixel size in the model's input, and how much of the contours survives resampling.

Masks are resampled to the model's grid, thresholded at one half as for training, and resampled back. Their Dice with
the original masks is an upper bound for a network that reproduces its training masks. The claims compare with
crop: none.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.phantom import make_phantom


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 scans of the phantom")
    parser.add_argument("--data", type=Path, help="an annotated cohort (a generated phantom)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256], help="sizes of the model's input")
    options = parser.parse_args()
    import_tensorflow()
    with tempfile.TemporaryDirectory() as place:
        cohort = options.data or make_phantom(Path(place) / "phantom", cases=3 if options.quick else 10, days=1)
        facts = measure(cohort, options.sizes)
    for line in report(facts, options.sizes):
        print(line)


def measure(cohort, sizes):
    from gitseg_tf.config.data import DataConfig
    from gitseg_tf.core.progress import progress
    from gitseg_tf.data.pipeline.geometry import from_model, place, to_model
    from gitseg_tf.data.readers.registry import read_cohort

    facts = []
    for scan in progress(read_cohort(cohort).scans, "crop", unit="scan"):
        volume, masks = scan.read_volume(), scan.read_annotation().masks
        image, percentiles, spacing = volume.with_channels, volume.percentiles, np.float32(scan.spacing)
        for size in sizes:
            for crop in ("none", "body"):
                placement = place(image, percentiles, spacing, DataConfig(input_size=(size, size), crop=crop))
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
