"""The data set is what it says: real photographs, right labels, nothing shared by the splits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
from PIL import Image

from dlmon.demo import photos
from dlmon.errors import UsageError
from tests.demo.conftest import PER_PHOTOGRAPH

NAMES = sorted(Path(name).stem for name in photos.PHOTOGRAPHS)


def _original(name: str) -> Image.Image:
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    (file,) = (data / photo for photo in photos.PHOTOGRAPHS if Path(photo).stem == name)
    with Image.open(file) as image:
        return image.convert("RGB")


def _distance(one: Image.Image, other: Image.Image) -> float:
    return float(numpy.abs(numpy.asarray(one, float) - numpy.asarray(other, float)).mean())


def test_every_photograph_has_its_files_for_training_and_validation(photographs: Path) -> None:
    for split, count in (("train", PER_PHOTOGRAPH * 3 // 4), ("val", PER_PHOTOGRAPH // 4)):
        assert sorted(path.name for path in (photographs / split).iterdir()) == NAMES
        for name in NAMES:
            assert len(list((photographs / split / name).iterdir())) == count


def test_every_file_is_a_jpeg_that_decodes_to_the_size_promised(photographs: Path) -> None:
    for path in photographs.glob("*/*/*"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.convert("RGB").size == (photos.SIDE, photos.SIDE)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_piece_of_the_photograph_it_is_named_for(
    photographs: Path, name: str, split: str
) -> None:
    original = _original(name)
    box = next(photos.cuts(original.size, split, 1, name))
    expected = original.resize((photos.SIDE, photos.SIDE), Image.Resampling.BILINEAR, box=box)
    with Image.open(photographs / split / name / "0000.jpg") as piece:
        assert _distance(piece, expected) < 6  # of 255: what JPEG loses


@pytest.mark.parametrize("name", NAMES)
def test_training_and_validation_never_see_the_same_pixel(name: str) -> None:
    size = _original(name).size
    border = photos.region(size, "train")[2]
    assert all(box[2] <= border for box in photos.cuts(size, "train", 500, name))
    assert all(box[0] >= border for box in photos.cuts(size, "val", 500, name))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_squares_inside_the_photograph(name: str, split: str) -> None:
    width, height = _original(name).size
    for left, upper, right, lower in photos.cuts((width, height), split, 500, name):
        assert right - left == lower - upper > 0
        assert left >= 0 <= upper
        assert right <= width
        assert lower <= height


def test_progress_ends_at_what_was_announced(tmp_path: Path) -> None:
    progress = list(photos.write(tmp_path, 4))
    total = 4 * len(photos.PHOTOGRAPHS)
    assert [of for _, of in progress] == [total] * len(photos.PHOTOGRAPHS)
    assert progress[-1] == (total, total)
    assert len(list(tmp_path.glob("*/*/*.jpg"))) == total


def test_the_same_arguments_give_the_same_files(photographs: Path, tmp_path: Path) -> None:
    list(photos.write(tmp_path, PER_PHOTOGRAPH))
    for path in photographs.glob("*/*/*"):
        assert (tmp_path / path.relative_to(photographs)).read_bytes() == path.read_bytes()


def test_a_photograph_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "PHOTOGRAPHS", ("astronaut.png", "yeti.png"))
    with pytest.raises(UsageError, match=r"photographs yeti\.png are not in .*; install"):
        list(photos.write(tmp_path, 4))
