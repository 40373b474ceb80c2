"""Make a data set of JPEG files out of the photographs that scikit-image's wheel carries.

Each photograph is a class, each file a square cut out of one at a random place and scale. The
files for training come from the left two thirds of a photograph, those for validation from the
right third, so that no pixel is in both and the validation accuracy means something.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dlmon.errors import UsageError

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Files in `skimage/data`, inside the wheel: nothing is downloaded."""

SIDE = 224
"""Pixels: every file is SIDE x SIDE."""

QUALITY = 90
VALIDATION_SHARE = 0.25
SEED = 0

Box = tuple[int, int, int, int]
"""left, upper, right, lower in pixels, as Pillow has it."""


def write(directory: Path, per_photograph: int) -> Iterator[tuple[int, int]]:
    """Write the data set, yielding after each photograph.

    The files are `<directory>/<train|val>/<photograph>/<number>.jpg`; the same arguments give the
    same files.

    Args:
        directory: An existing directory.
        per_photograph: Files per photograph, 4 or more; a quarter of them for validation.

    Yields:
        Files written so far, and how many there will be.

    Raises:
        UsageError: A photograph is not in the installed scikit-image.
    """
    total = per_photograph * len(PHOTOGRAPHS)
    validation = max(1, int(per_photograph * VALIDATION_SHARE))
    counts = {"train": per_photograph - validation, "val": validation}
    for number, path in enumerate(_sources(), 1):
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        for split, count in counts.items():
            folder = directory / split / path.stem
            folder.mkdir(parents=True)
            for index, box in enumerate(cuts(photograph.size, split, count, path.stem)):
                piece = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
                piece.save(folder / f"{index:04}.jpg", quality=QUALITY)
        yield number * per_photograph, total


def cuts(size: tuple[int, int], split: str, count: int, name: str) -> Iterator[Box]:
    """Yield where to cut squares out of a photograph.

    Args:
        size: Width and height of the photograph in pixels.
        split: `train` or `val`.
        count: How many squares.
        name: The photograph's name; with `split` it decides the random places.

    Yields:
        Squares within the split's region, their side half to all of the smaller region's.
    """
    left, upper, right, lower = region(size, split)
    longest = min(size[0] // 3, size[1])
    rng = random.Random(f"{SEED} {split} {name}")
    for _ in range(count):
        side = rng.randint(longest // 2, longest)
        x = rng.randint(left, right - side)
        y = rng.randint(upper, lower - side)
        yield x, y, x + side, y + side


def region(size: tuple[int, int], split: str) -> Box:
    """Return the part of a photograph of `size` that `split` may be cut from."""
    width, height = size
    border = width - width // 3
    return (0, 0, border, height) if split == "train" else (border, 0, width, height)


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("skimage")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise UsageError("scikit-image is not installed; install it: pip install 'dlmon[demo]'")
    folder = Path(next(iter(places))) / "data"
    paths = [folder / name for name in PHOTOGRAPHS]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise UsageError(
            f"photographs {', '.join(absent)} are not in {folder}, where scikit-image 0.22 and "
            "later have them; install a current one: pip install --upgrade scikit-image"
        )
    return paths
