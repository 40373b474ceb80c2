"""`dlmon`, but that a job is told where its agent is however long that takes to start."""

import sys

from dlmon.cli import main
from dlmon.commands import _serve

if __name__ == "__main__":
    _serve.START_SECONDS = 60.0
    sys.exit(main())
