"""From features to pixels: the discrete up-samplers, and the choice of one."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .hiif import HIIF
from .layers import Conv3x3
from .maps import rgb_mean


class PixelShuffleDirect(nn.Sequential):
    """The published light networks' up-sampler: Conv3x3 to 3 s^2 channels, then a pixel shuffle.

    The RGB mean, which those networks subtract at their entry, is added.
    """

    decode_margin = 0
    attentions = 0

    def __init__(self, dim: int, scale: int):
        super().__init__(Conv3x3(dim, 3 * scale * scale))
        self.scale = scale

    def features(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, 3 s^2): the output's pixels, still in channels."""
        return self[0](x)

    def shuffle(self, features: Tensor) -> Tensor:
        """(B, H, W, 3 s^2) -> (B, 3, s H, s W)."""
        s = self.scale
        return rearrange(features, "b h w (c i j) -> b c (h i) (w j)", i=s, j=s)

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        return self.shuffle(features) + rgb_mean(image)[:, None, None]


class BilinearPixelShuffle(PixelShuffleDirect):
    """Pixel shuffle beside a bilinear up-sampling of the image, at which a new network starts."""

    decode_margin = 1

    def __init__(self, dim: int, scale: int):
        super().__init__(dim, scale)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        size = (self.scale * image.shape[2], self.scale * image.shape[3])
        bilinear = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        return self.shuffle(features) + bilinear


def upsampler(
    dim: int,
    scale: int | None,
    discrete: type[PixelShuffleDirect],
    decoder: dict[str, int],
) -> PixelShuffleDirect | HIIF:
    """The up-sampler of a network: `discrete` for a factor, HIIF(**decoder) for None."""
    return HIIF(dim, **decoder) if scale is None else discrete(dim, scale)
