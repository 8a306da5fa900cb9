"""The base class of every network of this package: a body and an up-sampler."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn

from c2d_kernels import Region

from ..errors import NetworkError
from .hiif import HIIF
from .maps import crop, mirror_index, pad_to_multiple
from .preparable import Kept, Preparable
from .upsamplers import Upsampler


class Network(nn.Module, ABC):
    """A body and an up-sampler: what every super-resolution network of this package is.

    A subclass defines `body` and sets `upsample`.

    Attributes:
        name: the preset's name.
        scale: the factor, or None for a continuous network.
        config: the constructor's arguments, JSON values only.
        record: how the weights came to be, as a model file says; empty for fresh ones.
        pad_multiple: the image is mirrored to a multiple of this many pixels at the entry ...
        pad_index: ... by this rule of maps.py.
        tile_multiple: tiles of a large image must begin at multiples of this many LR pixels ...
        min_overlap: ... and overlap by at least so many, for the seams to vanish.
    """

    name: str = ""
    pad_multiple: int
    pad_index: ClassVar[Callable[..., Tensor]] = staticmethod(mirror_index)
    tile_multiple: int
    min_overlap: int
    upsample: Upsampler | HIIF

    def __init__(self, scale: int | None, config: dict[str, Any]):
        super().__init__()
        if scale is not None and (not isinstance(scale, int) or scale < 1):
            raise NetworkError(
                "scale must be a whole number such as 2, 3 or 4, or None for a continuous network; "
                f"got {scale!r}"
            )
        self.scale = scale
        self.config = config
        self.record: dict[str, Any] = {}

    @property
    def channels(self) -> int:
        """Channels of the features between its layers; a tile takes memory in proportion."""
        return self.config["dim"]

    @property
    def in_channels(self) -> int:
        """Number of its images' channels: 3 for RGB, 1 for grey."""
        return 3

    @property
    def query_attentions(self) -> int:
        """How many attentions over all queries a continuous network has; 0 for a discrete one."""
        return self.upsample.attentions

    @property
    def decode_margin(self) -> int:
        """LR pixels around a piece of the features that `decode` reads beside it."""
        return self.upsample.decode_margin

    @abstractmethod
    def body(self, image: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> features (B, H, W, C); H, W are multiples of `pad_multiple`."""

    def encode(self, x: Tensor) -> Tensor:
        """Features of the images x (B, 3, H, W), for `decode`: (B, H, W, C) of their own size."""
        check_images(x, self.in_channels)
        image = rearrange(x, "b c h w -> b h w c")
        image = pad_to_multiple(image, self.pad_multiple, self.pad_index)
        features = self.upsample.features(self.body(image))
        return crop(features, x.shape[2], x.shape[3])

    def decode(
        self,
        features: Tensor,
        image: Tensor,
        *,
        size: tuple[int, int] | None = None,
        coords: Tensor | None = None,
        cell: Tensor | None = None,
        region: Region | None = None,
        moments: list[Tensor] | None = None,
    ) -> Tensor:
        """Pixels from `encode`'s features (B, H, W, C) and the images (B, 3, H, W) they come from.

        Args:
            size: (H_out, W_out); continuous networks need it, or `coords`.
            coords: (B, Q, 2), (y, x) of pixel centres in [-1, 1], with `cell` (B, 2), the height
                and width of an output pixel in the same units.
            region: the part of the output to make, from features that may be a crop (continuous
                only).
            moments: the attentions' matrices over all queries, as means (continuous only).

        Returns:
            (B, 3, H_out, W_out), or (B, Q, 3) for `coords`.
        """
        if isinstance(self.upsample, HIIF):
            return self.upsample.decode(
                features, image, size=size, coords=coords, cell=cell, region=region, moments=moments
            )
        if any(value is not None for value in (size, coords, cell, region, moments)):
            raise NetworkError(
                f"{self.name or type(self).__name__} enlarges by {self.scale} only: call net(x), "
                "or take a continuous network (scale=None) for size and coords"
            )
        return self.upsample.decode(features, image)

    def decode_moments(
        self,
        features: Tensor,
        *,
        size: tuple[int, int],
        region: Region | None = None,
        moments: list[Tensor] | tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Sum of k^T v over the queries of `region`, (B, heads, d, d), of attention len(moments).

        Divide the sum over all regions by H_out * W_out and give it to `decode`: the picture does
        then not depend on how it was cut. Continuous networks only.
        """
        if not isinstance(self.upsample, HIIF):
            raise NetworkError(
                f"{self.name or type(self).__name__} enlarges by {self.scale} only: "
                "it has no attention over queries, so no moments"
            )
        return self.upsample.decode_moments(features, size=size, region=region, moments=moments)

    def forward(
        self,
        x: Tensor,
        *,
        size: tuple[int, int] | None = None,
        coords: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> Tensor:
        """Enlarge images.

        Args:
            x: (B, 3, H, W), floats in [0, 1], any H and W from 1.
            size: (H_out, W_out) of a continuous network's output.
            coords: or the positions (B, Q, 2), (y, x) in [-1, 1], at which to give colours, ...
            cell: ... with the size (B, 2) of an output pixel, (2 / H_out, 2 / W_out).

        Returns:
            (B, 3, scale H, scale W); continuous: (B, 3, H_out, W_out) or (B, Q, 3).

        Raises:
            TypeError: x is not a floating-point tensor.
            NetworkError: x has another shape, or the place does not suit the network.
        """
        if not self.upsample.on_padded_map:
            return self.decode(self.encode(x), x, size=size, coords=coords, cell=cell)
        check_images(x, self.in_channels)
        assert self.scale is not None  # HIIF takes the map as it is
        image = rearrange(x, "b c h w -> b h w c")
        image = pad_to_multiple(image, self.pad_multiple, self.pad_index)
        image = rearrange(image, "b h w c -> b c h w")
        pixels = self.decode(self.encode(image), image, size=size, coords=coords, cell=cell)
        pixels = rearrange(pixels, "b c h w -> b h w c")
        pixels = crop(pixels, self.scale * x.shape[2], self.scale * x.shape[3])
        return rearrange(pixels, "b h w c -> b c h w")

    def prepare(self) -> "Network":
        """Evaluation mode, in which what depends on the weights alone is computed once.

        A later change of weights or modules is noticed (see `preparable.Kept`); `train()` undoes
        it.
        """
        self.eval()
        for module in self.modules():
            if isinstance(module, Preparable):
                module.kept = Kept()
        return self

    def train(self, mode: bool = True) -> "Network":
        """Training or evaluation mode; in training nothing is kept of what `prepare` keeps."""
        for module in self.modules():
            if mode and isinstance(module, Preparable):
                module.kept = None
        return super().train(mode)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **options: Any) -> "Network":
        """A trained network of this class, or by `Network` of any, in evaluation mode.

        Args:
            folder_or_repo: a folder that `save_pretrained` wrote, or a repository on the Hugging
                Face Hub, "user/name".
            options: device ("cpu") and dtype as `c2d_models.load` has them, and those of
                huggingface_hub: revision, token, cache_dir, force_download, local_files_only.

        Raises:
            ModelFileError: nothing there, a broken file, or a network of another class.
        """
        from . import hub

        return hub.load(cls, folder_or_repo, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Write model.safetensors, config.json and, where none is yet, a card, README.md.

        Args:
            folder: made if it is missing.
            options: of huggingface_hub: push_to_hub, repo_id, model_card_kwargs, ...

        Returns:
            None, or with push_to_hub=True the URL of the commit.
        """
        from . import hub

        return hub.HubModel(self).save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes.

        Args:
            repo_id: "user/name", made if it is missing.
            options: of huggingface_hub: private, token, branch, create_pr, commit_message, ...

        Returns:
            The URL of the commit.
        """
        from . import hub

        return hub.HubModel(self).push_to_hub(repo_id, **options)


def check_images(x: Tensor, channels: int) -> None:
    """Refuse what is not (B, channels, H, W) of floats."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor with values in [0, 1]; got {got}")
    if x.ndim != 4 or x.shape[1] != channels:
        kind = ("RGB", "repeat a grey channel three times")
        if channels == 1:
            kind = ("grey", "give it each channel of a colour image by itself")
        raise NetworkError(
            f"x must have the shape (B, {channels}, H, W), {kind[0]}; got {tuple(x.shape)}: "
            f"stack images to a batch and {kind[1]}"
        )
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise NetworkError(f"x must have at least one pixel; got {tuple(x.shape)}")
