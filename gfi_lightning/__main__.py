"""``python -m gfi_lightning`` is ``gfi-lightning``."""

import sys

from gfi_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
