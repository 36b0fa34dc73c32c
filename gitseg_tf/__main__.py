"""`python -m gitseg_tf COMMAND` is `gitseg COMMAND`."""

import sys

from gitseg_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
