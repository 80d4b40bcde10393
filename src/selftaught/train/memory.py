"""Keeping freed memory in the process: activations are freed and asked for again many times a second."""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@cache
def keep_freed_memory() -> None:
    """Let glibc serve blocks of up to 32 MiB from memory this process has freed, for the rest of its life.

    By default it maps each block afresh, and the kernel then clears every page: some hundredths of a small model's
    update, most in bf16. On other C libraries nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_MMAP_THRESHOLD, 2**25)
    mallopt(_TRIM_THRESHOLD, 2**30)
