"""Code for jobs that makes their segment directory one of the bad kind: `tests.jobs` scripts."""

from __future__ import annotations

FULL = '''
import ctypes, os, sys

def full(directory):
    """Mount a tiny file system there, in a mount namespace of this process's own, and fill it."""
    libc = ctypes.CDLL(None, use_errno=True)
    CLONE_NEWNS, MS_PRIVATE_ALL = 0x20000, 0x4000 | 0x40000
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_PRIVATE_ALL, None)
        or libc.mount(b"tmpfs", directory.encode(), b"tmpfs", 0, b"size=64k,mode=700")
    ):
        print("SKIP no mount namespace:", os.strerror(ctypes.get_errno()), flush=True)
        sys.exit(0)
    with open(directory + "/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass

'''
"""Defines `full(directory)`; a job that cannot do it prints SKIP and why."""
