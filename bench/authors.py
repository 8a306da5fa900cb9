"""Super-resolution networks as their authors publish them, out of clones of their repositories.

Nothing of them is kept here. They import packages that need a GPU or gigabytes for a handful of
names (timm, basicsr, torchvision, mamba_ssm): `stand_ins` gives those names.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import c2d_kernels


class DropPath(nn.Module):
    """Stochastic depth, as timm has it."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)
        return x * kept / (1 - self.drop_prob)


class _Registry:
    def register(self) -> Callable[[type], type]:
        return lambda kind: kind


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _pad(x: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    left, top, right, bottom = sides
    return F.pad(x, (left, right, top, bottom))


def stand_ins() -> None:
    """Make the names importable that the authors' files import."""
    if importlib.util.find_spec("transformers"):
        # Before there is a stand-in for torchvision, which it would take for the real one.
        importlib.import_module("transformers.models.swin2sr.modeling_swin2sr")
    layers = {"DropPath": DropPath, "to_2tuple": _pair, "trunc_normal_": nn.init.trunc_normal_}
    layers["_assert"] = lambda holds, message: None
    modules: dict[str, dict[str, Any]] = {
        "timm": {},
        "timm.models": {},
        "timm.models.layers": layers,
        "timm.models.fx_features": {"register_notrace_function": lambda function: function},
        "basicsr": {},
        "basicsr.utils": {},
        "basicsr.utils.registry": {"ARCH_REGISTRY": _Registry()},
        "basicsr.archs": {"__path__": []},
        "basicsr.archs.arch_util": layers,
        "torchvision": {},
        "torchvision.transforms": {"functional": types.SimpleNamespace(pad=_pad)},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(contents)
        sys.modules[name] = module
    c2d_kernels.install_as_mamba_ssm()


@dataclass
class Network:
    """A network of a repository.

    Attributes:
        repository: "owner/name" on GitHub; empty for Hugging Face's transformers.
        file: that defines it.
        options: of its constructor, for a scale of 2.
        loop: whether it is compared with itself on the scan's reference, which loops over tokens as
            mamba_ssm's does: without a GPU its authors' code has nothing else.
    """

    repository: str
    file: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    loop: bool = False

    def make(self, clones: Path) -> nn.Module:
        """The network with its authors' initialisation, in evaluation."""
        if not self.repository:
            return _of_transformers(self.options).eval()
        path = clone(self.repository, clones) / self.file
        module = sys.modules.get(f"basicsr.archs.{path.stem}") or _load(path)
        return getattr(module, self.kind)(**self.options).eval()


class InALoop(nn.Module):
    """A network whose scans are done token by token."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        with c2d_kernels.backend("reference"):
            return self.net(image)


def clone(repository: str, clones: Path) -> Path:
    """The folder of a repository below `clones`, cloned if it is not there."""
    folder = clones / repository.split("/")[1]
    if not folder.is_dir():
        url = f"https://github.com/{repository}"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", url, folder], check=True)
    return folder


def _load(path: Path) -> types.ModuleType:
    name = f"basicsr.archs.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Reconstruction(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image).reconstruction


def _of_transformers(options: dict[str, Any]) -> nn.Module:
    from transformers.models.swin2sr import modeling_swin2sr as published

    net = published.Swin2SRForImageSuperResolution(published.Swin2SRConfig(**options))
    return _Reconstruction(net)


_LIGHT = {"depths": [6] * 4, "embed_dim": 60, "num_heads": [6] * 4}
_MEDIUM = {"depths": [6] * 6, "embed_dim": 180, "num_heads": [6] * 6, "upsampler": "pixelshuffle"}
_COMMON = {"upscale": 2, "mlp_ratio": 2, "upsampler": "pixelshuffledirect"}
_BASICSR = {**_COMMON, "img_size": 64, "img_range": 1.0, "resi_connection": "1conv"}

_swinir = partial(Network, "JingyunLiang/SwinIR", "models/network_swinir.py", "SwinIR")
_srformer = partial(Network, "HVision-NKU/SRFormer", "basicsr/archs/srformer_arch.py", "SRFormer")
_hit_options = {
    **_BASICSR,
    **_LIGHT,
    "img_size": (64, 64),
    "base_win_size": [8, 8],
    "hier_win_ratios": [0.5, 1, 2, 4, 6, 8],
    "expansion_factor": 2,
}
del _hit_options["mlp_ratio"]
_mamba = {**_BASICSR, "window_size": 16, "convffn_kernel_size": 5}
_hat = {
    **_BASICSR,
    **_MEDIUM,
    "window_size": 16,
    "compress_ratio": 3,
    "squeeze_factor": 30,
    "conv_scale": 0.01,
    "overlap_ratio": 0.5,
}
_dat = {
    **_BASICSR,
    "depth": [18],
    "embed_dim": 60,
    "num_heads": [6],
    "expansion_factor": 2,
    "split_size": [8, 32],
    "resi_connection": "3conv",
}
del _dat["mlp_ratio"]
_swin2sr = partial(Network, "mv-lab/swin2sr", "models/network_swin2sr.py", "Swin2SR")
_window_8 = {**_COMMON, "img_size": 64, "window_size": 8, "img_range": 1.0}
_transformers = {"image_size": 64, "window_size": 8, "mlp_ratio": 2.0, "upscale": 2}

NETWORKS = {
    "SwinIR, lightweight": _swinir({**_window_8, **_LIGHT}),
    "SwinIR, classical M": _swinir({**_window_8, **_MEDIUM}),
    "SwinIR, real-world L": _swinir(
        {
            **_window_8,
            "depths": [6] * 9,
            "embed_dim": 240,
            "num_heads": [8] * 9,
            "upsampler": "nearest+conv",
            "resi_connection": "3conv",
        }
    ),
    "SRFormer, light": _srformer({**_BASICSR, **_LIGHT, "window_size": 16}),
    "SRFormer, M": _srformer({**_BASICSR, **_MEDIUM, "window_size": 24, "img_size": 48}),
    **{
        f"HiT-{name}": Network(
            "XiangZ-0/HiT-SR",
            f"basicsr/archs/hit_{name.lower()}_arch.py",
            f"HiT_{name}",
            _hit_options,
        )
        for name in ("SIR", "SRF", "SNG")
    },
    "MambaIR, light": Network(
        "csguoh/MambaIR",
        "basicsr/archs/mambair_arch.py",
        "MambaIR",
        {**_BASICSR, "embed_dim": 60, "d_state": 10, "depths": [6] * 4, "mlp_ratio": 1.2},
        loop=True,
    ),
    "MambaIRv2, light": Network(
        "csguoh/MambaIR",
        "basicsr/archs/mambairv2light_arch.py",
        "MambaIRv2Light",
        {
            **_mamba,
            "embed_dim": 48,
            "d_state": 8,
            "depths": [5] * 4,
            "num_heads": [4] * 4,
            "inner_rank": 32,
            "num_tokens": 64,
            "mlp_ratio": 1.0,
        },
    ),
    "MambaIRv2, base": Network(
        "csguoh/MambaIR",
        "basicsr/archs/mambairv2_arch.py",
        "MambaIRv2",
        {
            **_mamba,
            **_MEDIUM,
            "embed_dim": 174,
            "d_state": 16,
            "inner_rank": 64,
            "num_tokens": 128,
        },
    ),
    "HAT": Network("XPixelGroup/HAT", "hat/archs/hat_arch.py", "HAT", _hat),
    "DAT, light": Network("zhengchen1999/DAT", "basicsr/archs/dat_arch.py", "DAT", _dat),
    "Swin2SR, light": _swin2sr({**_window_8, **_LIGHT}),
    "Swin2SR, M": _swin2sr({**_window_8, **_MEDIUM}),
    "Swin2SR, light, Hugging Face": Network(
        "", "", "", {**_transformers, **_LIGHT, "upsampler": "pixelshuffledirect"}
    ),
    "Swin2SR, M, Hugging Face": Network("", "", "", {**_transformers, **_MEDIUM}),
}
"""Of scale 2, by the names of the papers' variants."""
