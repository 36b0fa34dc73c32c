"""A lower bound for every conversion: two processes decode a cohort's PNGs with OpenCV and write nothing."""

import multiprocessing
import sys
from pathlib import Path

import cv2


def decode(path):
    return cv2.imread(path, cv2.IMREAD_UNCHANGED).shape[0]


if __name__ == "__main__":
    files = sorted(map(str, Path(sys.argv[1]).glob("train/*/*/scans/*.png")))
    with multiprocessing.get_context("fork").Pool(2, initializer=cv2.setNumThreads, initargs=[1]) as pool:
        print(sum(1 for _ in pool.imap_unordered(decode, files, chunksize=48)), "slices")
