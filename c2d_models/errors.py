"""Refusals: whatever a user can do differently is a `C2DError`.

Its message is one sentence that says what was wrong and what to do. The command line prints that
sentence; anything else that is raised is a bug, and its traceback is printed. A tensor or an array
of the wrong type stays Python's TypeError, and a kernel asked for by name that cannot run
`c2d_kernels.BackendError`.
"""

import sys


class C2DError(ValueError):
    """A request that cannot be met."""


class ArgumentError(C2DError):
    """An argument of a function that is out of its range."""


class ImageError(C2DError):
    """An image that cannot be read or written; the sentence names the file."""


class VideoError(C2DError):
    """A clip that cannot be read or written; the sentence names the file."""


class DataError(C2DError):
    """Images that are missing, cannot be used or do not fit together."""


class ModelFileError(C2DError):
    """A model file that is missing, broken, or holds something else."""


class NetworkError(C2DError):
    """A network that does not exist, or cannot be built or called as asked."""


class UpscaleError(C2DError):
    """Settings of an enlargement that are out of range or do not suit the model."""


class OutOfMemoryError(C2DError, MemoryError):
    """Even the smallest tiles do not fit into memory."""


class EvaluationError(C2DError):
    """An evaluation that cannot be made as asked."""


class ConfigError(C2DError):
    """A training run that cannot be made as its configuration says."""


class ClusterError(C2DError):
    """Workers that cannot be provided as asked."""


class DeviceError(C2DError):
    """A device that is not there."""


def sentence(error: BaseException) -> str | None:
    """The sentence that an exception tells the user, or None for a bug.

    Sentences are those of refusals, of the operating system where it names a file, and of memory
    that ran out.
    """
    # Looked up, not imported: `c2d --help` does not wait for torch.
    kernels, devices = sys.modules.get("c2d_kernels"), sys.modules.get("c2d_models.devices")
    if isinstance(error, C2DError) or (kernels and isinstance(error, kernels.BackendError)):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}."
    if devices and devices.is_out_of_memory(error):
        return "memory ran out: close other programs, or choose another device or a smaller size."
    return None
