"""Run somebody else's network on this package's kernels: python examples/accelerate_network.py.

Hugging Face's Swin2SR stands for yours (pip install transformers); its weights here are random.
"""

import time

import torch
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

import c2d_kernels

sizes = {"embed_dim": 60, "depths": [6, 6], "num_heads": [6, 6], "window_size": 8, "image_size": 64}
net = Swin2SRForImageSuperResolution(Swin2SRConfig(**sizes, upsampler="pixelshuffledirect")).eval()
image = torch.rand(1, 3, 64, 64)


@torch.no_grad()
def seconds() -> float:
    net(image)
    start = time.perf_counter()
    net(image)
    return time.perf_counter() - start


with torch.no_grad():
    before = net(image).reconstruction
as_written = seconds()
report = c2d_kernels.accelerate(net)
print(report)
with torch.no_grad():
    change = (net(image).reconstruction - before).abs().max()
print(f"{as_written / seconds():.1f} times as fast, largest difference {change:.0e}")
report.revert()
