"""A network small enough to tile exactly: what reaches past its overlap would show as a seam."""

import numpy as np
import torch
from torch import nn

from c2d_models.networks.layers import Conv3x3
from c2d_models.networks.network import Network
from c2d_models.networks.upsamplers import BilinearPixelShuffle, upsampler


class Local(Network):
    """Sees 3 pixels around: two convolutions and the up-sampler's. `limit` plays a small memory."""

    tile_multiple, min_overlap, pad_multiple = 8, 16, 1

    def __init__(self, scale, attentions=1, limit=None):
        decoder = {"width": 8, "levels": 3, "heads": 2, "attentions": attentions}
        super().__init__(scale, {"dim": 8, "decoder": decoder})
        self.name, self.limit, self.seen = "local", limit, []
        self.first, self.second = Conv3x3(3, 8), Conv3x3(8, 8)
        self.upsample = upsampler(8, scale, BilinearPixelShuffle, decoder)

    def body(self, image):
        self.seen.append(image.shape[1:3])
        if self.limit is not None and image.shape[1] * image.shape[2] > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return self.second(torch.tanh(self.first(image)))


def local(scale, **options):
    """A `Local` whose every weight is random, also those that begin at zero."""
    torch.manual_seed(0)
    net = Local(scale, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net.eval()


def identity():
    """A continuous network that is bilinear interpolation, as all are before training."""
    return Local(None).eval()


def photo(height, width, channels=3, dtype=np.float32):
    values = np.random.default_rng(0).random((height, width, channels))
    if np.dtype(dtype).kind == "u":
        values = values * np.iinfo(dtype).max
    return values.astype(dtype)


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) + 1e-20)
