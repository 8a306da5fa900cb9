"""Pictures of noise, and their files."""

import numpy as np
import pyvips


def write(path, pixels):
    """Write an array (H, W, C) or (H, W) as the image file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).write_to_file(str(path))
    return path


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
