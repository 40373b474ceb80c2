"""What NVML says of this node's GPUs: the one door to it.

A call of NVML may take seconds, or never return, when a GPU is in trouble. So a thread of its own
asks, and whoever wants to know gets its last answer, or nothing once that is old.

Source: NVIDIA, "NVML API Reference Guide"; the binding is nvidia-ml-py (module `pynvml`).

Runs in: agent. On failure: there are no GPUs to see; NVML is asked again after a while.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from dlmon.observe.aside import Aside
from dlmon.observe.snapshot import Gpu

RETRY_SECONDS = 30.0
"""How long NVML, or a GPU that it has lost, is left alone before it is asked again, and its library
before it is looked for again."""

FRESH_TICKS = 3
"""How many intervals an answer holds."""

_LIBRARY = "libnvidia-ml.so.1"
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel's proc_ns.h

logger = logging.getLogger(__name__)


class Gpus:
    """Keeps an eye on all GPUs, once an interval, from a thread of its own."""

    def __init__(self, interval_seconds: float, retry_seconds: float = RETRY_SECONDS) -> None:
        """Prepare; nothing is asked before `start`.

        Args:
            interval_seconds: From one look to the next, above 0.
            retry_seconds: After a failure.
        """
        self._interval = interval_seconds
        self._retry = retry_seconds
        self._seen: tuple[float, tuple[Gpu, ...]] = (0.0, ())
        self._state = "GPUs: NVML has not answered yet"
        self._nvml: Nvml | None = None
        self._aside = Aside("dlmon-gpus", self._turn)

    def start(self, wait_seconds: float = 1.0) -> None:
        """Begin to look, and wait a moment for the first answer."""
        self._aside.start(wait_seconds)

    def now(self) -> tuple[Gpu, ...]:
        """Return the GPUs as last seen; none if that is too long ago."""
        when, gpus = self._seen
        return gpus if time.monotonic() - when <= FRESH_TICKS * self._interval else ()

    def say(self) -> str:
        """Say in a few words what can be seen."""
        return self._state

    def close(self) -> None:
        """Ask no more."""
        self._aside.close()

    def _turn(self) -> float:
        if self._nvml is None:
            binding = _binding()
            if binding is None:
                self._tell(
                    f"no GPU: {_LIBRARY}, which comes with NVIDIA's driver, is not here; looked "
                    f"for again every {self._retry:g} s"
                )
                return self._retry
            self._nvml = Nvml(binding)
        try:
            gpus = self._nvml.look()
        except Exception as error:  # noqa: BLE001  # the rest goes on without GPUs
            self._nvml.close()
            self._tell(f"no GPU: NVML says: {error}; asked again every {self._retry:g} s")
            return self._retry
        self._seen = (time.monotonic(), gpus)
        self._tell(_sight(gpus))
        if not self._nvml.whole:  # NVML finds a GPU again only when it is opened again
            self._nvml.close_after(self._retry)
        return self._interval

    def _tell(self, state: str) -> None:
        """Note what can be seen, and log it where that is news; the agent's greeting was first."""
        if state != self._state:
            self._state = state
            if self._aside.begun:
                logger.info("%s", state)


class Nvml:
    """Asks NVML, which is opened when need be.

    Attributes:
        whole: Every GPU answered at the last look.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._open = False
        self._close_at: float | None = None
        self._sees_all = _sees_every_process()
        self._over = {  # NVML itself is gone, or its driver
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        }
        self._lost = {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}
        self.whole = True

    def look(self) -> tuple[Gpu, ...]:
        """Look at every GPU once; one that does not answer is left out.

        Raises:
            pynvml.NVMLError: NVML itself does not answer.
        """
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.close()
        if not self._open:
            self._nvml.nvmlInit()
            self._open = True
        self.whole = True
        gpus: list[Gpu] = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                gpus += self._device(index)
            except self._nvml.NVMLError as error:
                if error.value in self._over:
                    raise
                self.whole = False
        return tuple(gpus)

    def close_after(self, seconds: float) -> None:
        """Open NVML anew at the first look after that time."""
        if self._close_at is None:
            self._close_at = time.monotonic() + seconds

    def close(self) -> None:
        """Let NVML go; the next look opens it again."""
        self._close_at = None
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _device(self, index: int) -> Iterator[Gpu]:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        instances = list(self._instances(handle))
        for number, instance in instances:
            yield self._gpu(f"{index}:{number}", instance)
        if not instances:
            yield self._gpu(str(index), handle)

    def _instances(self, handle: Any) -> Iterator[tuple[int, Any]]:
        """Yield the MIG instances of a GPU."""
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return
        for number in range(self._ask(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._ask(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if instance is not None:
                yield number, instance

    def _gpu(self, index: str, handle: Any) -> Gpu:
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        if memory is None:  # a driver before 510
            memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        return Gpu(
            index=index,
            uuid=str(nvml.nvmlDeviceGetUUID(handle)),
            name=str(self._ask(nvml.nvmlDeviceGetName, handle) or ""),
            utilization=None if rates is None else min(100, int(rates.gpu)) / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            pids=self._pids(handle),
        )

    def _pids(self, handle: Any) -> tuple[int, ...] | None:
        """Return who uses a GPU, None where NVML may not say.

        In a container the driver leaves out whom it may not name: an empty list means nothing.
        """
        nvml = self._nvml
        computing = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
        if computing is None:  # a driver before 510
            computing = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)
        if computing is None:
            return None
        drawing = self._ask(nvml.nvmlDeviceGetGraphicsRunningProcesses_v3, handle) or []
        pids = {int(process.pid) for process in (*computing, *drawing)} - {0}
        return tuple(sorted(pids)) if pids or self._sees_all else None

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return an answer, None where this GPU, driver or caller has none.

        Raises:
            pynvml.NVMLError: The GPU, or NVML itself, is gone.
        """
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in self._over | self._lost:
                raise
            return None


def _binding() -> Any:
    """Return pynvml; None, without its 6 MB, where NVML is not installed."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    import pynvml  # noqa: PLC0415  # see above

    return pynvml


def _sees_every_process() -> bool:
    """Return whether this process is in the machine's first pid namespace."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid") == _FIRST_PID_NAMESPACE
    return False


def _sight(gpus: tuple[Gpu, ...]) -> str:
    if not gpus:
        return "no GPU: NVML knows of none"
    names = " and ".join(sorted({gpu.name for gpu in gpus if gpu.name}))
    told = "" if all(gpu.pids is not None for gpu in gpus) else ", but not who uses them"
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({names or 'no name'}){told}"
