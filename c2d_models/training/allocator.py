"""Memory that stays with the process between steps of training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# <malloc.h> of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have glibc keep large blocks that are freed, for the next step, instead of returning them.

    Otherwise each tensor of some megabytes is mapped anew in every step, and the system clears its
    pages one by one: a quarter to two fifths of a training step of HiET-SwinIR (4 patches of 64x64
    on two cores took 1.03-1.08 s, and 0.65-0.80 s after this call). The process then stays as
    large as it once was. It holds for the whole process, for good.

    Returns:
        Whether it took effect; False where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    taken = [mallopt(name, value) == 1 for name, value in settings]  # each, also after a refusal
    return all(taken)
