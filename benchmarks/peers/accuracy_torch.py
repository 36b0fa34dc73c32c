"""A common baseline: segmentation-models-pytorch on windows of 5 slices, trained for a fixed time on the CPU.

    accuracy_torch.py COHORT OUT.csv --train case1,case2 --test case3 [--minutes 20] [--seed 0] [--encoder resnet34]

U-Net without pretrained weights, 256 x 256, batches of 8, AdamW with one cosine cycle, BCE and Dice, the augmentation
of loader_torch.py, a quarter of the slices without labels. Writes one row per slice and label of --test.
"""

import argparse
import math
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from loader_torch import LABELS, Windows

BATCH, PEAK, WARM_UP = 8, 1e-3, 50


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="resnet34")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    windows = Windows(options.cohort, True, "5")
    model = smp.Unet(options.encoder, encoder_weights=None, in_channels=5, classes=3)
    model = model.to(memory_format=torch.channels_last)
    steps = train(model, windows, chosen(windows, options.train), 60 * options.minutes)
    table = predictions(model, windows, chosen(windows, options.test, every=True))
    table.to_csv(options.out, index=False)
    print(f"{steps} steps, {len(table)} rows")


def chosen(windows, cases, every=False):
    """List the indices of the slices of some patients, with a quarter of the slices without labels."""
    kept = []
    for i, path in enumerate(windows.files):
        if path.parts[-4] in cases.split(","):
            name = f"{path.parts[-3]}_slice_{path.name.split('_')[1]}"
            if every or any(windows.runs.get((name, label)) for label in LABELS) or np.random.rand() < 0.25:
                kept.append(i)
    return kept


def train(model, windows, numbers, seconds):
    cross_entropy, dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("multilabel", from_logits=True)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, weight_decay=1e-4)
    model.train()
    order, step, start = [], 0, time.monotonic()
    while (done := (time.monotonic() - start) / seconds) < 1:
        if len(order) < BATCH:
            order = list(np.random.permutation(numbers))
        batch, order = order[:BATCH], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2
        image, mask = (torch.stack(part) for part in zip(*(windows[i] for i in batch), strict=True))
        logits = model(image.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(logits, mask) + dice(logits, mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    return step


@torch.inference_mode()
def predictions(model, windows, numbers):
    model.eval()
    windows.change = lambda image, mask: {"image": cv2.resize(image, (256, 256)), "mask": mask}
    rows = []
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        probabilities = torch.sigmoid(model(torch.stack([windows[i][0] for i in batch]))).numpy()
        for i, planes in zip(batch, probabilities, strict=True):
            path = windows.files[i]
            height, width = windows.read(path).shape
            name = f"{path.parts[-3]}_slice_{path.name.split('_')[1]}"
            rows += [
                (name, label, run_lengths(cv2.resize(plane, (width, height)) > 0.5))
                for label, plane in zip(LABELS, planes, strict=True)
            ]
    return pd.DataFrame(rows, columns=["id", "class", "segmentation"])


def run_lengths(mask):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().view(np.int8), [0]])))
    return " ".join(f"{first + 1} {last - first}" for first, last in edges.reshape(-1, 2))


if __name__ == "__main__":
    main()
