"""What a user can do differently: every refusal of this package is a `C2DError`.

Its message is one sentence that says what was wrong and what to do. The command line prints these
sentences, and the traceback of anything else: that is a bug.
"""


class C2DError(ValueError):
    """A request that cannot be met."""


class ImageError(C2DError):
    """An image that cannot be read or written; the sentence names the file."""


class DataError(C2DError):
    """Images that are missing, cannot be used or do not fit together."""


class ModelFileError(C2DError):
    """A model file that is missing, broken, or of something else."""


class NetworkError(C2DError):
    """A network that does not exist, or cannot be built or used as asked."""


class UpscaleError(C2DError):
    """Settings of an enlargement that are out of range or do not suit the model."""


class OutOfMemoryError(C2DError, MemoryError):
    """Even the smallest tiles do not fit into memory."""


class EvaluationError(C2DError):
    """An evaluation that cannot be made as asked."""


class ConfigError(C2DError):
    """A training configuration that cannot be run."""


class DeviceError(C2DError):
    """A device that is not there."""
