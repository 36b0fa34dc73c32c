"""Convert a cohort to TFRecords: `python tfrecords/convert.py DATA OUT`, the same as `gitseg convert`."""

import sys

from gitseg_tf.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
