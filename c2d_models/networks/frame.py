"""The parts around a published network's layers: its entry, its convolutions and its tail."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import NetworkError
from .layers import Conv3x3, PointwiseConv
from .maps import colour_mean
from .upsamplers import (
    NearestConv,
    PixelShuffle,
    PixelShuffleAux,
    PixelShuffleDirect,
    Restoration,
)

UPSAMPLERS = {
    "pixelshuffledirect": PixelShuffleDirect,
    "pixelshuffle": PixelShuffle,
    "pixelshuffle_aux": PixelShuffleAux,
    "nearest+conv": NearestConv,
    "": Restoration,
}
"""By the names that SwinIR's and Swin2SR's authors gave them."""
CONVOLUTIONS = ("1conv", "3conv")


@dataclass(frozen=True)
class Frame:
    """The variants of SwinIR's frame, named as its authors name them.

    Attributes:
        upsampler: of UPSAMPLERS; "" restores without enlarging.
        num_feat: channels of the up-samplers but the direct one.
        resi_connection: the convolution after a group of layers and after all: one 3x3, or three
            through a quarter of the channels.
        in_channels: 3 for RGB, 1 for grey.
        img_range: what 1.0 becomes at the entry.

    Raises:
        NetworkError: a value that is not one of these.
    """

    upsampler: str = "pixelshuffledirect"
    num_feat: int = 64
    resi_connection: str = "1conv"
    in_channels: int = 3
    img_range: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("upsampler", tuple(UPSAMPLERS)), ("resi_connection", CONVOLUTIONS)):
            if getattr(self, name) not in known:
                options = ", ".join(map(repr, known))
                raise NetworkError(f"{name} must be one of {options}; got {getattr(self, name)!r}")
        if self.in_channels not in (1, 3):
            raise NetworkError(f"in_channels must be 1 or 3; got {self.in_channels!r}")

    @property
    def config(self) -> dict[str, Any]:
        """Differences from SwinIR lightweight's, for a network's configuration."""
        standard = asdict(Frame())
        return {name: value for name, value in asdict(self).items() if value != standard[name]}

    def entry(self, image: Tensor) -> Tensor:
        """(B, H, W, in_channels) in [0, 1] as the first convolution sees it."""
        centred = image - colour_mean(image, self.in_channels)
        return centred if self.img_range == 1 else centred * self.img_range

    def convolution(self, dim: int) -> nn.Module:
        """The convolution after a group of layers."""
        if self.resi_connection == "1conv":
            return Conv3x3(dim, dim)
        narrow = dim // 4
        return nn.Sequential(
            Conv3x3(dim, narrow),
            nn.LeakyReLU(0.2),
            PointwiseConv(narrow, narrow),
            nn.LeakyReLU(0.2),
            Conv3x3(narrow, dim),
        )

    def tail(self, dim: int, scale: int) -> nn.Module:
        """The up-sampler for a factor."""
        if self.upsampler == "pixelshuffledirect":
            return PixelShuffleDirect(dim, scale, self.in_channels, self.img_range)
        kind = UPSAMPLERS[self.upsampler]
        return kind(dim, scale, self.num_feat, self.in_channels, self.img_range)
