"""An accelerator that torch only believes in: what pins a batch is the batch's own method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch


@contextmanager
def accelerator() -> Iterator[None]:
    """Have torch believe in one, so that it starts the thread that pins memory."""
    answers = {
        "is_available": True,
        "current_accelerator": torch.device("cpu"),
        "current_device_index": 0,
        "set_device_index": None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.accelerator, name, return_value=answer))
        yield
