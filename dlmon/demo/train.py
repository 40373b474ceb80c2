"""Train a small network to tell which photograph a piece was cut from: a job like a user's own.

`dlmon demo` runs it as a process of its own: `python -m dlmon.demo.train --data DIR`. All that it
has of dlmon are `dlmon.instrument()` and the names of its loaders; the rest is plain torch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_longlong
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

import dlmon
from dlmon.demo.faults import FAULTS
from dlmon.demo.trouble import TROUBLES, EpochEnder, Trouble

SIDE = 96
MEAN = torch.tensor([0.45, 0.42, 0.40]).view(3, 1, 1)
STD = torch.tensor([0.26, 0.25, 0.25]).view(3, 1, 1)
ENDING = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 2

Loader = DataLoader[tuple[Tensor, int]]


class Pieces(Dataset[tuple[Tensor, int]]):
    """JPEG files of `<folder>/<class>/`, decoded and made ready one by one.

    Args:
        folder: A split of what `dlmon.demo.photos.write` wrote.
        augment: Crop, flip and colour at random, for training; else take the middle.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        samples: Path and class of each file.
        trouble: A fault to suffer from, if any.
    """

    def __init__(self, folder: Path, augment: bool) -> None:
        self.classes = sorted(path.name for path in folder.iterdir())
        self.samples = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).glob("*.jpg"))
        ]
        self._augment = augment
        self.trouble: Trouble | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a sample as a 3 x SIDE x SIDE tensor of normalised floats, and its class."""
        path, label = self.samples[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        if self.trouble is not None:
            worker = get_worker_info()
            image = self.trouble(image, worker.id if worker is not None else 0)
        image = _augmented(image) if self._augment else image.resize((SIDE, SIDE))
        pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - MEAN) / STD, label

    def collate(self, samples: list[tuple[Tensor, int]]) -> Any:
        """Return samples as a batch."""
        batch = default_collate(samples)
        return self.trouble.spoil(batch) if self.trouble is not None else batch


def _augmented(image: Image.Image) -> Image.Image:
    side = random.uniform(0.5, 1.0) * image.width
    left, upper = (random.uniform(0, image.width - side) for _ in range(2))
    image = image.resize((SIDE, SIDE), box=(left, upper, left + side, upper + side))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(random.uniform(0.7, 1.3))
    return image


def network(classes: int) -> nn.Module:
    """Return a convolutional network for `classes` classes of 3 x SIDE x SIDE images."""
    widths = (3, 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers)


class Training:
    """The network, its optimizer, its data and how far it has come.

    Args:
        data: What `dlmon.demo.photos.write` wrote.
        num_workers: Of the loader for training; that for validation has half of them.
        batch_size: Of both loaders.
        fault: A key of `FAULTS`, or None.

    Attributes:
        epoch: Number of the current epoch, from 1; 0 before it begins.
        ended_by: The signal that ends it, None as long as none does.
    """

    def __init__(self, data: Path, num_workers: int, batch_size: int, fault: str | None) -> None:
        self.epoch = RawValue(c_longlong, 0)
        self.train_set = Pieces(data / "train", augment=True)
        self.val_set = Pieces(data / "val", augment=False)
        if fault is not None:
            after = len(self.train_set) // max(1, num_workers) // 4
            self.train_set.trouble = TROUBLES[fault](self.epoch, after, num_workers, data)
        self.model = network(len(self.train_set.classes))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.ended_by: int | None = None
        self._num_workers = num_workers
        self._batch_size = batch_size

    def train_loader(self) -> Loader:
        """Return a new loader for training; its workers live on from epoch to epoch."""
        trouble = self.train_set.trouble
        loader = DataLoader(
            self.train_set,
            batch_size=self._batch_size,
            shuffle=True,
            collate_fn=self.train_set.collate if trouble is not None else None,
            multiprocessing_context="fork" if trouble is not None and trouble.forked else None,
            drop_last=len(self.train_set) > self._batch_size,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
        )
        return dlmon.name(loader, "train")

    def val_loader(self) -> Loader:
        """Return a new loader for validation; it starts workers anew in every epoch."""
        loader = DataLoader(
            self.val_set, batch_size=self._batch_size, num_workers=(self._num_workers + 1) // 2
        )
        return dlmon.name(loader, "val")

    def run_epoch(self, train_loader: Loader, val_loader: Loader) -> None:
        """Train for one epoch, validate and print how it went."""
        self.epoch.value += 1
        began = time.monotonic()
        loss, train_accuracy, images = self._train(train_loader)
        seconds = time.monotonic() - began
        val_accuracy = self._validate(val_loader)
        print(
            f"epoch {self.epoch.value:3}   loss {loss:.3f}   train {train_accuracy:6.1%}   "
            f"val {val_accuracy:6.1%}   {images / seconds:5.0f} images/s   {seconds:.1f} s"
        )

    def _train(self, train_loader: Loader) -> tuple[float, float, int]:
        self.model.train()
        total_loss, correct, seen = 0.0, 0, 0
        for images, labels in train_loader:
            self._end_if_asked()
            logits = self.model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            self.optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
        return total_loss / seen, correct / seen, seen

    @torch.no_grad()
    def _validate(self, val_loader: Loader) -> float:
        self.model.eval()
        correct = 0
        for images, labels in val_loader:
            self._end_if_asked()
            correct += int((self.model(images).argmax(1) == labels).sum())
        return correct / len(self.val_set)

    def end_at_next_batch(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: at once, in the middle of a batch, workers would print tracebacks.

        If there is no next batch within PATIENCE_SECONDS, or at a second signal, it ends at once.
        """
        self.ended_by = number
        for further in (*ENDING, signal.SIGALRM):
            signal.signal(further, signal.SIG_DFL)
        signal.alarm(PATIENCE_SECONDS)

    def _end_if_asked(self) -> None:
        if self.ended_by is not None:
            raise KeyboardInterrupt


def train(training: Training, epochs: int | None, restart: bool) -> None:
    """Train for `epochs` epochs, or until interrupted.

    Args:
        training: What to train.
        epochs: 1 or more, or None for no end.
        restart: Go on with new workers when one has died or the dataset has raised.

    Raises:
        RuntimeError: A worker died, and not `restart`.
        OSError: A file cannot be read, or likewise.
    """
    train_loader, val_loader = training.train_loader(), training.val_loader()
    while epochs is None or training.epoch.value < epochs:
        try:
            training.run_epoch(train_loader, val_loader)
        except (RuntimeError, OSError, EOFError) as error:
            # torch raises RuntimeError at a worker's death, unless the loop is just then taking a
            # batch out of that worker's memory: then the connection to it breaks first.
            if not restart:
                raise
            for _ in range(2):  # torch's handler of SIGCHLD may tell of the same death once more
                with suppress(RuntimeError):
                    train_loader = training.train_loader()
                    print(f"epoch {training.epoch.value:3}   {type(error).__name__}: {error}")
                    print("            given up; going on with the next epoch and new workers")
                    break


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: The arguments without the script's name; `sys.argv[1:]` by default.

    Returns:
        0 after the last epoch, 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="default: until Ctrl-C")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--fault", choices=sorted(FAULTS))
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a pipe would show an epoch minutes later
    dlmon.instrument()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = Training(args.data, args.num_workers, args.batch_size, args.fault)
    print(
        f"{len(training.train_set.classes)} photographs: {len(training.train_set)} pieces to train "
        f"on, {len(training.val_set)} to validate, {args.num_workers} workers"
    )
    for number in ENDING:
        signal.signal(number, training.end_at_next_batch)
    try:
        restart = isinstance(training.train_set.trouble, EpochEnder)
        train(training, args.epochs, restart=restart)
    except KeyboardInterrupt:
        return 128 + (training.ended_by or signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
