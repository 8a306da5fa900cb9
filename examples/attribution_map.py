"""Which pixels did a network use? python examples/attribution_map.py [OUTPUT.png].

A local attribution map (2011.11036) of a window in the enlarged picture's middle: the brighter a
pixel, the more it added to the window's edges.
"""

import sys
from pathlib import Path

import pyvips
import torch

import c2d_models
from c2d_models.evaluation.attribution import diffusion_index, local_attribution

output = sys.argv[1] if len(sys.argv) > 1 else "attribution.png"
pixels = pyvips.Image.new_from_file(Path(__file__).with_name("photo.png")).numpy()
image = torch.from_numpy(pixels[48:112, 88:152]).permute(2, 0, 1) / 255  # 64x64 of it

net = c2d_models.load("hiet_swinir_tiny_x4")
attribution = local_attribution(net, image, window=(120, 120, 16), steps=20)

print(f"diffusion index {diffusion_index(attribution):.1f}: 100 would be the whole image alike")
brightness = (attribution.abs() / attribution.abs().max()).sqrt().mul(255).byte().numpy()
pyvips.Image.new_from_array(brightness).write_to_file(output)
print(output)
