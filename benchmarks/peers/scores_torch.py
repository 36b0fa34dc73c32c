"""Scores of pairs of masks from surface-distance or MONAI, called as documented.

    scores_torch.py FOLDER TOLERANCE_MM surface-distance|MONAI

FOLDER contains the files written by ../scores.py. The last line is JSON: seconds and CPU seconds by file, peak MiB, and
scores by file and label.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np

# surface-distance 0.1 uses these names, which NumPy 2 removed.
np.Inf, np.NaN = np.inf, np.nan
warnings.simplefilter("ignore")


def main(folder, tolerance, peer):
    measure, add = {"surface-distance": with_surface_distance, "MONAI": with_monai}[peer](float(tolerance))
    files = sorted(Path(folder).glob("*.npz"))
    seconds, processor_seconds, figures = {}, {}, {}
    for file in [files[0], *files]:  # the first file is scored twice, as warm-up
        pair = load(file)
        start, start_of_threads = time.perf_counter(), time.process_time()
        figures[file.stem] = measure(*pair)
        seconds[file.stem] = time.perf_counter() - start
        processor_seconds[file.stem] = time.process_time() - start_of_threads
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for file in files:
        add(figures[file.stem], *load(file))
    times = {"seconds": seconds, "processor_seconds": processor_seconds}
    print(json.dumps({**times, "mib": peak, "figures": figures}))


def load(file):
    stored = np.load(file)
    shape = tuple(stored["shape"])
    masks = (
        np.unpackbits(stored[name], count=int(np.prod(shape))).view(bool).reshape(shape)
        for name in ("truth", "prediction")
    )
    return *masks, tuple(map(float, stored["spacing"]))


def with_surface_distance(tolerance):
    import surface_distance

    def score_label(truth, prediction, spacing):
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
        from_truth, from_prediction = surface_distance.compute_average_surface_distance(distances)
        scores = {
            "surfel_hausdorff_mm": surface_distance.compute_robust_hausdorff(distances, 100),
            "surfel_hd95_mm": surface_distance.compute_robust_hausdorff(distances, 95),
            "surfel_mean_from_truth_mm": from_truth,
            "surfel_mean_from_prediction_mm": from_prediction,
            "surface_dice": surface_distance.compute_surface_dice_at_tolerance(distances, tolerance),
            "dice": surface_distance.compute_dice_coefficient(truth, prediction),
        }
        return {name: float(score) for name, score in scores.items()}

    def scan(truth, prediction, spacing):
        return [score_label(t, p, spacing) for t, p in zip(truth, prediction, strict=True)]

    return scan, lambda *_: None


def with_monai(tolerance):
    import torch
    from monai import metrics
    from monai.metrics.utils import get_edge_surface_distance

    def scan(truth, prediction, spacing):
        y_pred, y = (torch.from_numpy(mask[None].astype(np.float32)) for mask in (prediction, truth))
        whole, in_mm = {"include_background": True}, {"include_background": True, "spacing": spacing}
        limits = [tolerance] * len(truth)
        scores = {
            "hausdorff_voxels": metrics.compute_hausdorff_distance(y_pred, y, **whole),
            "hausdorff_mm": metrics.compute_hausdorff_distance(y_pred, y, **in_mm),
            "hd95_mm": metrics.compute_hausdorff_distance(y_pred, y, percentile=95, **in_mm),
            "mean_surface_mm": metrics.compute_average_surface_distance(y_pred, y, symmetric=True, **in_mm),
            "surface_dice": metrics.compute_surface_dice(y_pred, y, limits, use_subvoxels=True, **in_mm),
            "dice": metrics.compute_dice(y_pred, y, **whole),
            "iou": metrics.compute_iou(y_pred, y, **whole),
        }
        values = [score[0].tolist() for score in scores.values()]
        return [dict(zip(scores, row, strict=True)) for row in zip(*values, strict=True)]

    def add_exact_percentile(rows, truth, prediction, spacing):
        """Replace HD95, a percentile in float32, by the same percentile of MONAI's distances in float64.

        In float32, the rank of the percentile among 40,000 distances is only accurate to 1/500.
        """
        for row, t, p in zip(rows, truth, prediction, strict=True):
            row["hd95_mm_float32"] = row["hd95_mm"]
            if t.any() and p.any():
                masks = torch.from_numpy(p.astype(np.float32)), torch.from_numpy(t.astype(np.float32))
                _, distances, _ = get_edge_surface_distance(*masks, spacing=spacing, symmetric=True)
                row["hd95_mm"] = max(torch.quantile(d.double(), 0.95).item() for d in distances)

    return scan, add_exact_percentile


if __name__ == "__main__":
    main(*sys.argv[1:])
