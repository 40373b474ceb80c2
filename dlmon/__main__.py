"""`python -m dlmon`."""

import sys

from dlmon.cli import main

if __name__ == "__main__":
    sys.exit(main())
