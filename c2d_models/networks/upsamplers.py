"""From features to pixels: the discrete up-samplers, and the choice of one."""

from collections.abc import Callable
from typing import cast

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import NetworkError
from .hiif import HIIF
from .layers import Conv3x3
from .maps import colour_mean


class Upsampler(nn.Module):
    """From features to pixels at one factor.

    Attributes:
        decode_margin: LR pixels that `decode` reads around what it makes.
        decode_bytes: peak bytes of `decode` per output pixel, float32.
        on_padded_map: whether `decode` runs before the map is cropped to the image's size, so that
            its convolutions see what the image was padded with.
    """

    decode_margin = 0
    decode_bytes = 48
    on_padded_map = False
    attentions = 0

    def features(self, x: Tensor) -> Tensor:
        """Make the result of `encode` from the body's features (B, H, W, C)."""
        return x

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        """(B, colours, s H, s W) from `features` (B, H, W, any) and the image."""
        raise NotImplementedError


class PixelShuffleDirect(nn.Sequential, Upsampler):
    """The published light networks' up-sampler: Conv3x3 to 3 s^2 channels, then a pixel shuffle.

    The mean colour, which those networks subtract at their entry, is added.
    """

    def __init__(self, dim: int, scale: int, colours: int = 3, img_range: float = 1.0):
        super().__init__(Conv3x3(dim, colours * scale * scale))
        self.scale, self.img_range = scale, img_range

    def features(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, colours s^2): the output's pixels, still in channels."""
        return self[0](x)

    def shuffle(self, features: Tensor) -> Tensor:
        """(B, H, W, colours s^2) -> (B, colours, s H, s W)."""
        s = self.scale
        return rearrange(features, "b h w (c i j) -> b c (h i) (w j)", i=s, j=s)

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        return _denormalised(self.shuffle(features), image, self.img_range)


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


class Convolutional(Upsampler):
    """An up-sampler of several convolutions, `pixels`, on the padded map as its authors run it.

    Args:
        dim: channels of the body's features.
        scale: the factor.
        num_feat: channels of its convolutions.
        colours: of the output.
        img_range: by which the output is divided.
    """

    decode_margin = 3
    decode_bytes = 1200
    on_padded_map = True

    def __init__(self, dim: int, scale: int, num_feat: int, colours: int, img_range: float):
        super().__init__()
        self.scale, self.img_range = scale, img_range

    def pixels(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, s H, s W, colours)."""
        raise NotImplementedError

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        pixels = rearrange(self.pixels(features), "b h w c -> b c h w")
        return _denormalised(pixels, image, self.img_range)


class PixelShuffle(Convolutional):
    """Convolutions that shuffle channels into 2x2 pixels, or once into 3x3 (EDSR, 1707.02921)."""

    def __init__(self, dim: int, scale: int, num_feat: int, colours: int, img_range: float):
        super().__init__(dim, scale, num_feat, colours, img_range)
        self.conv_before_upsample = nn.Sequential(Conv3x3(dim, num_feat), nn.LeakyReLU())
        steps = []
        for factor in _factors(scale):
            steps += [Conv3x3(num_feat, num_feat * factor**2), Shuffle(factor)]
        self.upsample = nn.Sequential(*steps)
        self.conv_last = Conv3x3(num_feat, colours)

    def pixels(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))


class PixelShuffleAux(PixelShuffle):
    """PixelShuffle of a restored LR image, beside a bicubic enlargement (Swin2SR, 2209.11345).

    `conv_aux` makes that image out of the features; training compares it with the clean one.
    """

    decode_margin = 6
    decode_bytes = 1800

    def __init__(self, dim: int, scale: int, num_feat: int, colours: int, img_range: float):
        super().__init__(dim, scale, num_feat, colours, img_range)
        self.conv_bicubic = Conv3x3(colours, num_feat)
        self.conv_aux = Conv3x3(num_feat, colours)
        self.conv_after_aux = nn.Sequential(Conv3x3(colours, num_feat), nn.LeakyReLU())

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        restored = self.conv_aux(self.conv_before_upsample(features))
        x = self.upsample(self.conv_after_aux(restored))
        mean = colour_mean(image, image.shape[1])[:, None, None]
        size = (self.scale * image.shape[2], self.scale * image.shape[3])
        entry = (image - mean) * self.img_range
        bicubic = F.interpolate(entry, size=size, mode="bicubic", align_corners=False)
        x = x + self.conv_bicubic(rearrange(bicubic, "b c h w -> b h w c"))
        pixels = rearrange(self.conv_last(x), "b h w c -> b c h w")
        return _denormalised(pixels, image, self.img_range)


class Shuffle(nn.Module):
    """(B, H, W, factor^2 C) -> (B, factor H, factor W, C)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        f = self.factor
        return rearrange(x, "b h w (c i j) -> b (h i) (w j) c", i=f, j=f)


class NearestConv(Convolutional):
    """Nearest neighbours and a convolution, for each factor of 2 (Real-ESRGAN, 2107.10833)."""

    def __init__(self, dim: int, scale: int, num_feat: int, colours: int, img_range: float):
        super().__init__(dim, scale, num_feat, colours, img_range)
        if scale not in (2, 4):
            raise NetworkError(f"the nearest+conv up-sampler enlarges by 2 or 4; got {scale}")
        self.conv_before_upsample = nn.Sequential(Conv3x3(dim, num_feat), nn.LeakyReLU())
        self.conv_up1 = Conv3x3(num_feat, num_feat)
        if scale == 4:
            self.conv_up2 = Conv3x3(num_feat, num_feat)
        self.conv_hr = Conv3x3(num_feat, num_feat)
        self.conv_last = Conv3x3(num_feat, colours)
        self.lrelu = nn.LeakyReLU(0.2)

    def pixels(self, x: Tensor) -> Tensor:
        x = self.lrelu(self.conv_up1(_doubled(self.conv_before_upsample(x))))
        if self.scale == 4:
            x = self.lrelu(self.conv_up2(_doubled(x)))
        return self.conv_last(self.lrelu(self.conv_hr(x)))


class Restoration(Convolutional):
    """No enlarging: a convolution whose output is added to the image."""

    decode_margin = 1
    decode_bytes = 96

    def __init__(self, dim: int, scale: int, num_feat: int, colours: int, img_range: float):
        super().__init__(dim, scale, num_feat, colours, img_range)
        if scale != 1:
            raise NetworkError(f"a network without an up-sampler has a scale of 1; got {scale}")
        self.conv_last = Conv3x3(dim, colours)

    def pixels(self, x: Tensor) -> Tensor:
        return self.conv_last(x)

    def decode(self, features: Tensor, image: Tensor) -> Tensor:
        change = rearrange(self.pixels(features), "b h w c -> b c h w")
        return image + change / self.img_range


def _denormalised(pixels: Tensor, image: Tensor, img_range: float) -> Tensor:
    """Back from what the entry made of colours."""
    mean = colour_mean(image, pixels.shape[1])[:, None, None]
    return (pixels if img_range == 1 else pixels / img_range) + mean


def _doubled(x: Tensor) -> Tensor:
    """Each pixel of (B, H, W, C) twice along both axes."""
    x = F.interpolate(rearrange(x, "b h w c -> b c h w"), scale_factor=2, mode="nearest")
    return rearrange(x, "b c h w -> b h w c")


def _factors(scale: int) -> list[int]:
    """The shuffles of a factor: 3 at once, powers of 2 by twos."""
    if scale == 3:
        return [3]
    if scale < 2 or scale & (scale - 1):
        raise NetworkError(
            f"the pixelshuffle up-sampler enlarges by 3 or a power of 2; got {scale}"
        )
    return [2] * (scale.bit_length() - 1)


def upsampler(
    dim: int,
    scale: int | None,
    discrete: Callable[[int, int], nn.Module],
    decoder: dict[str, int],
) -> Upsampler | HIIF:
    """The up-sampler of a network: `discrete` for a factor, HIIF(**decoder) for None."""
    return HIIF(dim, **decoder) if scale is None else cast("Upsampler", discrete(dim, scale))
