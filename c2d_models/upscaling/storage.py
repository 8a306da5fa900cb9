"""Large intermediate tensors: in memory while there is room, else in a file without a name."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..devices import available_memory


def allocate(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    folder: Path | None,
    device: torch.device | None = None,
) -> Tensor:
    """An uninitialised tensor, on `device` if a quarter of its free memory holds it.

    Else it is in main memory, under the same condition, or mapped from a file in `folder` (by
    default the temporary folder), whose name is gone at once: it takes no room after the process,
    however that ends.

    Raises:
        OSError: the disk is full.
    """
    needed = math.prod(shape) * dtype.itemsize
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu and needed < torch.cuda.mem_get_info(device)[0] // 4:
        return torch.empty(shape, dtype=dtype, device=device)
    if needed < available_memory() // 4:
        return torch.empty(shape, dtype=dtype)
    handle, path = tempfile.mkstemp(".features", ".c2d.", folder)
    try:
        # Reserved, not only sized: a full disk is an error here, but a crash in mapped memory.
        reserve = getattr(os, "posix_fallocate", lambda file, start, length: None)
        reserve(handle, 0, needed)
        os.truncate(path, needed)
        flat = torch.from_file(path, shared=True, size=needed // dtype.itemsize, dtype=dtype)
    finally:
        os.close(handle)
        with contextlib.suppress(PermissionError):  # Windows keeps a mapped file
            os.unlink(path)
    return flat.reshape(shape)
