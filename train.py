"""Train, score and export a model: `python train.py --strategy mirrored`. The work is done in gitseg_tf."""

import sys

from gitseg_tf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
