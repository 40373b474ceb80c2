"""The training is a normal job, and each fault goes wrong where and when it should."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from ctypes import c_longlong
from pathlib import Path

import pytest
import torch
from PIL import Image

from dlmon.demo import train, trouble
from dlmon.demo.faults import FAULTS, FIRST_EPOCH
from tests.demo.running import ROOT

IMAGE = Image.new("RGB", (224, 224), (200, 100, 50))


def test_labels_are_those_of_the_folders(photographs: Path) -> None:
    pieces = train.Pieces(photographs / "train", augment=False)
    assert len(pieces) == len(pieces.samples) > 0
    for index in range(0, len(pieces), 7):
        assert pieces.classes[pieces[index][1]] == pieces.samples[index][0].parent.name


def test_both_splits_number_the_classes_alike(photographs: Path) -> None:
    splits = [train.Pieces(photographs / split, augment=False) for split in ("train", "val")]
    assert splits[0].classes == splits[1].classes


@pytest.mark.parametrize("augment", [True, False])
def test_a_sample_is_a_normalised_tensor(photographs: Path, augment: bool) -> None:
    image, label = train.Pieces(photographs / "train", augment=augment)[0]
    assert image.shape == (3, train.SIDE, train.SIDE)
    assert image.dtype is torch.float32
    assert image.abs().max() < 5
    assert label == 0


def test_only_augmented_samples_differ_from_time_to_time(photographs: Path) -> None:
    plain = train.Pieces(photographs / "train", augment=False)
    augmented = train.Pieces(photographs / "train", augment=True)
    assert torch.equal(plain[3][0], plain[3][0])
    assert not torch.equal(augmented[3][0], augmented[3][0])


def test_the_network_tells_as_many_classes_as_asked_for() -> None:
    images = torch.zeros(2, 3, train.SIDE, train.SIDE)
    assert train.network(7)(images).shape == (2, 7)


def test_the_script_trains_without_workers_and_without_an_agent(
    photographs: Path, segment_dir: Path
) -> None:
    command = ("--data", str(photographs), "--epochs", "1", "--num-workers", "0")
    done = subprocess.run(
        [sys.executable, "-m", "dlmon.demo.train", *command],
        env={**os.environ, "DLMON_DIR": str(segment_dir)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("epoch   1   loss ")


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_no_fault_begins_in_the_first_epoch(name: str, tmp_path: Path) -> None:
    fault = trouble.TROUBLES[name](c_longlong(FIRST_EPOCH - 1), 0, 2, tmp_path)
    assert fault(IMAGE, 0) is IMAGE


@pytest.mark.parametrize(
    "name", [name for name in FAULTS if name not in ("erode", "leak", "starve")]
)
def test_a_fault_of_one_worker_spares_the_others(name: str, tmp_path: Path) -> None:
    fault = trouble.TROUBLES[name](c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    assert fault(IMAGE, 1) is IMAGE


def test_a_fault_lets_the_first_samples_of_its_epoch_pass(tmp_path: Path) -> None:
    fault = trouble.Starve(c_longlong(FIRST_EPOCH), 2, 2, tmp_path)
    assert [fault(IMAGE, 0) is IMAGE for _ in range(3)] == [True, True, False]


def test_a_hung_read_lasts_until_somebody_answers(tmp_path: Path) -> None:
    fault = trouble.Hang(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    reader = threading.Thread(target=fault, args=(IMAGE, 0))
    reader.start()
    (fifo,) = tmp_path.iterdir()
    with fifo.open("wb"):  # returns once the other side reads
        assert reader.is_alive()
    reader.join()


@pytest.mark.parametrize("name", ["exception", "exit", "kill", "segfault"])
def test_an_epoch_is_ended_in_the_first_faulty_one_only(name: str, tmp_path: Path) -> None:
    fault = trouble.TROUBLES[name](c_longlong(FIRST_EPOCH + 1), 0, 2, tmp_path)
    assert isinstance(fault, trouble.EpochEnder)
    assert fault(IMAGE, 0) is IMAGE


def test_a_worker_is_stopped_once(tmp_path: Path) -> None:
    fault = trouble.Stop(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    if not (child := os.fork()):
        fault(IMAGE, 0)
        os._exit(17 if fault(IMAGE, 0) is IMAGE else 1)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


def test_a_lock_that_the_training_process_holds_is_free_in_nobody(tmp_path: Path) -> None:
    fault = trouble.Deadlock(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    assert fault.forked
    assert not fault._lock.acquire(blocking=False)


def test_only_the_batches_of_the_worker_that_is_struck_cannot_be_pickled(tmp_path: Path) -> None:
    fault = trouble.Unpicklable(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    assert fault.spoil([1, 2]) == [1, 2]
    assert fault(IMAGE, 0) is IMAGE
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(fault.spoil([1, 2]))


def test_what_erodes_fits_into_a_share_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "_free_bytes", lambda: 2_400_000)
    fault = trouble.Erode(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    assert len(fault._rows) == 100  # a quarter, for the training process and two workers
    while fault._seen < len(fault._rows):
        assert fault(IMAGE, 0) is IMAGE


def test_a_leak_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "LEAK_LIMIT_BYTES", 200_000)
    fault = trouble.Leak(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)
    for _ in range(10):
        fault(IMAGE, 0)
    assert [len(kept) for kept in fault._kept] == [37_632] * 2  # its half holds two, not three


def test_starving_changes_no_picture_beyond_rounding(tmp_path: Path) -> None:
    result = trouble.Starve(c_longlong(FIRST_EPOCH), 0, 2, tmp_path)(IMAGE, 0)
    assert result.size == IMAGE.size
    assert result.getpixel((7, 9)) == IMAGE.getpixel((7, 9))
