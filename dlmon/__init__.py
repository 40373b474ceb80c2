"""See inside PyTorch's DataLoader: who waits for whom, who is hung, who died, who grows.

Importing this module opens nothing, starts nothing and imports the standard library only.
"""

from __future__ import annotations

from dlmon.shim import instrument, name, uninstrument

__version__ = "0.1.0"

__all__ = ["__version__", "instrument", "name", "uninstrument"]
