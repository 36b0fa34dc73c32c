"""A common baseline: a PyTorch DataLoader with OpenCV and albumentations on a cohort in the competition's layout.

    loader_torch.py DATA png|npy [SLICES] [SECONDS]     npy: slices are decoded once and kept in memory

Windows of SLICES slices with stride 2, run-length masks, 256 x 256, batches of 32, two workers, and the augmentation
of published solutions: flip, shift-scale-rotate, grid or elastic distortion, coarse dropout. SLICES 3d gives crops of
32 x 128 x 128 instead. Prints samples/s, after a warm-up of a third of SECONDS.
"""

import itertools
import sys
import time
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch

cv2.setNumThreads(0)
LABELS = ("large_bowel", "small_bowel", "stomach")
BATCH = 32


def changes(height, width, resize=True):
    distort = [
        A.GridDistortion(num_steps=5, distort_limit=0.05, p=1.0),
        A.ElasticTransform(alpha=1, sigma=50, p=1.0),
    ]
    return A.Compose(
        [
            *([A.Resize(height, width, interpolation=cv2.INTER_LINEAR)] if resize else []),
            A.HorizontalFlip(p=0.5),
            A.ShiftScaleRotate(shift_limit=0.0625, scale_limit=0.1, rotate_limit=10, p=0.5),
            A.OneOf(distort, p=0.25),
            A.CoarseDropout(p=0.5),
        ]
    )


class Windows(torch.utils.data.Dataset):
    def __init__(self, root, in_memory, slices):
        self.files = sorted(root.glob("train/*/*/scans/*.png"))
        table = pd.read_csv(root / "train.csv", keep_default_na=False)
        self.runs = {key: runs for *key, runs in table.itertuples(index=False) for key in [tuple(key)]}
        self.held = {path: cv2.imread(str(path), -1) for path in self.files} if in_memory else None
        self.volumetric = slices == "3d"
        self.offsets = range(-16, 16) if self.volumetric else [2 * (k - int(slices) // 2) for k in range(int(slices))]
        self.change = changes(128, 128, resize=False) if self.volumetric else changes(256, 256)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        folder = self.files[i].parent
        near = [self.files[min(max(i + k, 0), len(self.files) - 1)] for k in self.offsets]
        near = [path if path.parent == folder else self.files[i] for path in near]
        image = np.stack([self.read(path) for path in near], -1).astype(np.float32)
        image /= image.max() + 1e-6
        shape = image.shape[:2]
        mask = np.concatenate([self.mask(path, shape) for path in (near if self.volumetric else [self.files[i]])], -1)
        if self.volumetric:
            y, x = (np.random.randint(n - 127) for n in shape)
            image, mask = (np.ascontiguousarray(a[y : y + 128, x : x + 128]) for a in (image, mask))
        changed = self.change(image=image, mask=mask)
        image, mask = (changed[name].transpose(2, 0, 1) for name in ("image", "mask"))
        return torch.from_numpy(image.copy()), torch.from_numpy(mask.astype(np.float32))

    def read(self, path):
        return self.held[path] if self.held else cv2.imread(str(path), -1)

    def mask(self, path, shape):
        slice_id = f"{path.parent.parent.name}_slice_{path.name.split('_')[1]}"
        planes = np.zeros((3, shape[0] * shape[1]), np.uint8)
        for plane, label in zip(planes, LABELS, strict=True):
            numbers = np.array(self.runs.get((slice_id, label), "").split(), int)
            for start, length in zip(numbers[::2] - 1, numbers[1::2], strict=True):
                plane[start : start + length] = 1
        return planes.reshape(3, *shape).transpose(1, 2, 0)


def main(root, mode, slices="5", seconds="15"):
    windows = Windows(Path(root), mode == "npy", slices)
    loader = torch.utils.data.DataLoader(
        windows, BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    batches = (image for _ in itertools.count() for image, _ in loader)
    warm, start, samples = False, time.time(), 0
    for image in batches:
        samples += len(image)
        if not warm and time.time() - start > float(seconds) / 3:
            warm, start, samples = True, time.time(), 0
        elif time.time() - start > float(seconds):
            break
    print(f"{mode} samples/s {samples / (time.time() - start):.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
