"""A simple converter: one process, tf.io and NumPy, one Example per scan."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

LABELS = ("large_bowel", "small_bowel", "stomach")


def mask_of(rle, height, width):
    flat = np.zeros(height * width, bool)
    numbers = [int(number) for number in rle.split()]
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(height, width)


def of_bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def example(folder, rles):
    paths = sorted(folder.glob("scans/*.png"))
    image = np.stack([tf.io.decode_png(tf.io.read_file(str(path)), dtype=tf.uint16).numpy()[..., 0] for path in paths])
    bits = np.zeros(image.shape, np.uint8)
    for plane, path in zip(bits, paths, strict=True):
        slice_id = f"{folder.name}_slice_{path.name.split('_')[1]}"
        for k, label in enumerate(LABELS):
            rle = rles.get((slice_id, label), "")
            plane |= mask_of(rle, *plane.shape).astype(np.uint8) << k
    features = {
        "id": of_bytes(folder.name.encode()),
        "shape": tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape)),
        "percentiles": tf.train.Feature(
            float_list=tf.train.FloatList(value=np.percentile(image, [0, 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5, 100]))
        ),
        "image": of_bytes(image.tobytes()),
        "mask": of_bytes(zlib.compress(bits.tobytes(), 1)),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def main(source, out):
    table = pd.read_csv(source / "train.csv", dtype=str, keep_default_na=False)
    rles = dict(zip(zip(table["id"], table["class"], strict=True), table["segmentation"], strict=True))
    out.mkdir()
    folders = sorted(path.parent for path in source.glob("train/*/*/scans"))
    for shard, first in enumerate(range(0, len(folders), 10)):
        with tf.io.TFRecordWriter(str(out / f"{shard:05d}.tfrecord")) as writer:
            for folder in folders[first : first + 10]:
                writer.write(example(folder, rles))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
