"""Enlarge a NumPy array: python examples/enlarge_array.py [SCALE]."""

import sys
from pathlib import Path

import numpy as np
import pyvips

import c2d_models

photo = Path(__file__).with_name("photo.png")
pixels = pyvips.Image.new_from_file(photo).numpy()  # (H, W, 3), uint8
scale = float(sys.argv[1]) if len(sys.argv) > 1 else 2.7

large = c2d_models.upscale(pixels, scale)  # any array: grey, alpha, uint16, floats in [0, 1]

assert isinstance(large, np.ndarray)
print(f"{pixels.shape} {pixels.dtype} -> {large.shape} {large.dtype}")
