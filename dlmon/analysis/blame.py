"""What stacks show: the line at which a process is, and if a loop waits for its queue at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dlmon.observe.stacks import Frame, Stack, Thread

SHOWN_FRAMES = 5
_LOADING = "torch/utils/data/dataloader.py"
_ASKS_SAMPLER = ("_next_index", "_try_put_index")


def whole(stacks: Iterable[Stack]) -> Stack | None:
    """Return the stack with the most frames, since some may be incomplete; None without any."""
    found = [stack for stack in stacks if stack.threads]
    return max(found, key=lambda stack: sum(len(t.frames) for t in stack.threads), default=None)


def guilty(stack: Stack) -> Thread | None:
    """Return the thread to look at first: who holds the interpreter, else the main thread."""
    holders = [thread for thread in stack.threads if thread.owns_gil and thread.frames]
    with_frames = [thread for thread in stack.threads if thread.frames]
    return next(iter(holders or with_frames), None)


def summary(stacks: Sequence[Stack]) -> str:
    """Say in one line where a process is, the innermost frame first."""
    stack = whole(stacks)
    thread = None if stack is None else guilty(stack)
    if thread is None:
        return next((one.trouble for one in stacks if one.trouble), "")
    where = " < ".join(map(_shown, thread.frames[:SHOWN_FRAMES]))
    return f"at {where}{', holding the GIL' if thread.owns_gil else ''}"


def asks_sampler(stacks: Iterable[Stack]) -> bool:
    """Say whether a loop is in its sampler, inside `next()`, and not waiting for a batch."""
    stack = whole(stacks)
    return stack is not None and any(
        frame.file.endswith(_LOADING) and frame.function.rpartition(".")[2] in _ASKS_SAMPLER
        for thread in stack.threads
        for frame in thread.frames
    )


def _shown(frame: Frame) -> str:
    return f"{frame.function} ({frame.file}:{frame.line})"
