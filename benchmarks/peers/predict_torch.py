"""The peer's prediction: a plain PyTorch loop with segmentation-models-pytorch, from PNG files to run-length rows.

    predict_torch.py COHORT INSIDE

U-Net ResNet-34 with random weights, windows of 5 x 256 x 256, batches of 8, float32, channels last, two threads; a
DataLoader worker reads, normalizes and resizes the next scan. The threshold is chosen so that a fraction INSIDE of the
first scan's voxels is inside. Prints a line of JSON when ready; then, for each line `bare BATCHES` or `files N` on
standard input, one with `images` per second and, for files, the `runs` per image.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from models_torch import import_smp

BATCH, SLICES, SIZE = 8, 5, 256
LABELS = ("large_bowel", "small_bowel", "stomach")


class Scans(torch.utils.data.Dataset):
    def __init__(self, cohort):
        self.folders = sorted(Path(cohort).glob("train/*/*/scans"))

    def __len__(self):
        return len(self.folders)

    def __getitem__(self, index):
        files = sorted(self.folders[index].glob("slice_*.png"))
        names = [f"{file.parts[-3]}_slice_{file.name.split('_')[1]}" for file in files]
        planes = np.stack([cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files])
        low, high = np.percentile(planes, [1, 99])
        planes = np.clip((planes.astype(np.float32) - low) / max(high - low, 1), 0, 1)
        height, width = planes.shape[1:]
        scale = SIZE / max(height, width)
        fitted = round(height * scale), round(width * scale)
        top, left = (SIZE - fitted[0]) // 2, (SIZE - fitted[1]) // 2
        model = np.zeros((len(files), SIZE, SIZE), np.float32)
        for plane, target in zip(planes, model, strict=True):
            target[top : top + fitted[0], left : left + fitted[1]] = cv2.resize(
                plane, fitted[::-1], interpolation=cv2.INTER_AREA
            )
        return names, torch.from_numpy(model), (height, width), (top, left, *fitted)


def main(cohort, inside):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    network = import_smp().Unet("resnet34", encoder_weights=None, in_channels=SLICES, classes=3)
    network = network.to(memory_format=torch.channels_last).eval()
    batch = torch.rand(BATCH, SLICES, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        # Logits of random weights can have any scale; with a scale of about 1, no probability saturates at 0 or 1.
        network.segmentation_head[0].weight /= network(batch).std()
        names, model, shape, placement = Scans(cohort)[0]
        middle = range(len(names) // 2, min(len(names) // 2 + BATCH, len(names)))
        threshold = float(np.quantile(probabilities(network, model, middle, shape, placement).numpy(), 1 - inside))
        files(network, cohort, threshold)
        say({"ready": True})
        for line in sys.stdin:
            what, count = line.split()
            start = time.perf_counter()
            answer = files(network, cohort, threshold) if what == "files" else bare(network, batch, int(count))
            answer["images"] /= time.perf_counter() - start
            say(answer)


def bare(network, batch, count):
    for _ in range(count):
        torch.sigmoid(network(batch))
    return {"images": BATCH * count}


def files(network, cohort, threshold):
    rows = []
    loader = torch.utils.data.DataLoader(Scans(cohort), batch_size=None, num_workers=1)
    for names, model, shape, placement in loader:
        for start in range(0, len(names), BATCH):
            middle = range(start, min(start + BATCH, len(names)))
            masks = (probabilities(network, model, middle, shape, placement) > threshold).numpy()
            for z, planes in zip(middle, masks, strict=True):
                rows += [(names[z], label, run_lengths(plane)) for label, plane in zip(LABELS, planes, strict=True)]
    with tempfile.NamedTemporaryFile("w") as out:
        out.write("id,class,predicted\n")
        out.writelines(f"{name},{label},{runs}\n" for name, label, runs in rows)
    images = len(rows) // len(LABELS)
    return {"images": images, "runs": sum(runs.count(" ") + bool(runs) for *_, runs in rows) / 2 / images}


def probabilities(network, model, middle, shape, placement):
    """Compute probabilities, float32 [N, 3, H, W], at the scan's size."""
    reach = SLICES // 2
    windows = torch.stack([model[np.clip(np.arange(z - reach, z + reach + 1), 0, len(model) - 1)] for z in middle])
    output = torch.sigmoid(network(windows.contiguous(memory_format=torch.channels_last)))
    top, left, height, width = placement
    output = output[:, :, top : top + height, left : left + width]
    return torch.nn.functional.interpolate(output, tuple(map(int, shape)), mode="bilinear")


def run_lengths(mask):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().view(np.int8), [0]])))
    return " ".join(f"{first + 1} {last - first}" for first, last in edges.reshape(-1, 2))


def say(line):
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
