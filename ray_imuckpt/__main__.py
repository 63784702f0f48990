"""``python -m ray_imuckpt`` is the command ``imuckpt``."""

import sys

from ray_imuckpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
