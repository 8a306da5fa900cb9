"""Workloads of whole networks: one image forward, and the gradients of one training step.

Weights are random but of trained size: a fresh network nearly returns the bilinear picture, and a
check of that would let a broken body pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import c2d_models
from bench import machine, materialised
from bench.contenders import AUTO, COMPILERS, REFERENCE, Build, peer, unless, without_package
from bench.correctness import Outputs
from bench.runtimes import RUNTIMES, to_onnx
from bench.workloads import SEED, Function, Job, Workload
from c2d_models.networks import hit
from c2d_models.networks.complexity import gmacs
from c2d_models.networks.mambairv2 import AttentiveStateSpace

COMPILED = ("swinir_l", "hiet_swinir")


def kept_out_of_compilation(workload: NetworkWorkload) -> str | None:
    if workload.scans:
        return "torch.compile would unroll the scan's reference over all pixels"
    if workload.backward:
        return "torch.compile runs the networks forward only, to keep the full run short"
    if workload.network not in COMPILED or workload.batch > 1 or workload.scale == 3:
        return f"torch.compile runs {' and '.join(COMPILED)} on one picture only: a minute each"
    if machine.device().type == "cpu" and (workload.autocast or workload.network != COMPILED[0]):
        return f"on a CPU torch.compile runs {COMPILED[0]} in float32 only: a minute and a half"
    return None


def kept_out_of_the_map(workload: NetworkWorkload) -> str | None:
    if machine.device().type == "cpu" and (workload.backward or workload.autocast):
        return "on a CPU the materialised map runs forward in float32 only: ten seconds a run"
    return None


def kept_to_gpus(workload: NetworkWorkload) -> str | None:
    if machine.device().type != "cuda":
        return "the operators inside torch.compile are timed with --device cuda only"
    return None


def kept_out_of_onnx(workload: NetworkWorkload) -> str | None:
    if workload.backward:
        return "ONNX files do not train"
    if machine.device().type != "cpu":
        return "ONNX files run here on a CPU only"
    if workload.scans:
        return "an export to ONNX would unroll the scan's reference over all pixels"
    if workload.network not in COMPILED or workload.out or workload.autocast:
        return f"ONNX files run {' and '.join(COMPILED)} x4 in float32, to keep the run short"
    return None


def exported(run: Callable[[bytes], Callable[[Tensor], Tensor]]) -> Build:
    """The reference, exported and specialised to the shape, as `run` runs ONNX files."""

    def build(workload: Bound, tensors: dict[str, Tensor]) -> Function:
        forward = run(to_onnx(workload.net, tensors["image"]))
        return lambda tensors: forward(tensors["image"])

    return build


def with_the_map(workload: Bound, tensors: dict[str, Tensor]) -> Function:
    """HiT with its spatial correlation as its authors write it (see bench/materialised.py)."""

    def function(tensors: dict[str, Tensor]) -> Tensor:
        with mock.patch.object(hit, "spatial_correlation", materialised.spatial_correlation):
            return workload.function(tensors)

    return function


CONTENDERS = [
    REFERENCE,
    AUTO,  # what a user gets: every kernel that can run here
    *(unless(compiler, kept_out_of_compilation) for compiler in COMPILERS),
    replace(  # both under the same compiler: what the kernels are worth there
        unless(unless(COMPILERS[0], kept_out_of_compilation), kept_to_gpus),
        name="auto, torch.compile",
        backend="auto",
        ours=True,
    ),
    *(
        replace(
            unless(unless(peer(name, exported(run)), without_package(package)), kept_out_of_onnx),
            full_only=True,
        )
        for name, package, run in RUNTIMES
    ),
]
HIT_CONTENDERS = [
    *CONTENDERS,
    replace(unless(peer("materialised", with_the_map), kept_out_of_the_map), full_only=True),
]


@dataclass(frozen=True, kw_only=True)
class NetworkWorkload(Workload):
    """A network on `tensors`; for a training step, the gradients of all its parameters.

    In bfloat16 it runs under autocast, on float32 weights and pictures.
    """

    network: str
    scale: int = 4
    batch: int = 1
    out: tuple[int, int] | None = None  # the size a continuous network is asked for; None: by scale
    scans: bool = False  # it has selective scans, whose reference is a loop over the pixels

    @property
    def autocast(self) -> bool:
        return self.dtype == torch.bfloat16

    def job(
        self,
        build: Callable[[Workload, dict[str, Tensor]], Function] | None = None,
        exact: bool = False,
    ) -> Job:
        """A fresh network with the same weights and inputs at each call (see Workload.job)."""
        generator = torch.Generator().manual_seed(SEED)
        tensors = {name: t.to(machine.device()) for name, t in self.tensors(generator).items()}
        net = c2d_models.create(self.network, None if self.out else self.scale)
        net = with_weights_in_use(net, generator).to(machine.device())
        net = without_kinks(net).train() if self.backward else net.prepare()
        if exact:
            net, tensors = net.double(), {name: t.double() for name, t in tensors.items()}
        bound = Bound(self, net, autocast=self.autocast and not exact)
        function = build(bound, tensors) if build else bound.function
        leaves = dict(net.named_parameters()) if self.backward else {}
        return Job(
            function,
            tensors,
            leaves,
            self.dtype,
            random=self.backward,  # HiET rolls its position encoding in training
        )

    def flops(self) -> int:
        """Multiply-adds by the networks' own count, times pictures; a backward counts twice."""
        batch, _, height, width = self.job().tensors["image"].shape
        net = c2d_models.create(self.network, None if self.out else self.scale)
        size = self.out or (self.scale * height, self.scale * width)
        of_one = gmacs(net, *size, scale=size[0] / height)
        return int(2e9 * of_one) * batch * (3 if self.backward else 1)

    def least_traffic(self, outputs: Outputs) -> None:
        """Not stated: what a network must move depends on how it is cut up."""

    def yardsticks(self) -> list[Job]:
        """For gradients also on images that differ by one ulp here and there.

        The error of the very same float32 code was seen to vary fourfold between such images, so
        that one run of it is a lottery and no yardstick. Outputs need no such care.
        """
        jobs = [self.job()]
        for number in range(3 if self.backward else 0):
            job, generator = self.job(), torch.Generator().manual_seed(number)
            image = job.tensors["image"]
            ulps = torch.randint(-1, 2, image.shape, generator=generator).to(image.device)
            job.tensors["image"] = image * (1 + ulps * torch.finfo(image.dtype).eps)
            jobs.append(job)
        return jobs


class Bound:
    """The part of a workload that a contender's `build` reads, its function tied to one network."""

    def __init__(self, workload: NetworkWorkload, net: nn.Module, autocast: bool) -> None:
        self.net, self.out, self.autocast = net, workload.out, autocast
        self.function = self.loss if workload.backward else self.forward

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        image = tensors["image"]
        if self.autocast:
            with torch.autocast(image.device.type, torch.bfloat16):
                return self.enlarge(image)
        return self.enlarge(image)

    def enlarge(self, image: Tensor) -> Tensor:
        return self.net(image, size=self.out) if self.out else self.net(image)

    def loss(self, tensors: dict[str, Tensor]) -> Tensor:
        """L1, as in training. The optimiser's update is left out: it is the same for everybody."""
        return (self.net(tensors["image"]) - tensors["target"]).abs().mean()


def with_weights_in_use(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random matrices that keep the variance; norms near one and biases near zero.

    Scans decay at the rates 1..N in steps of about 0.05, as Mamba's do; pixels are routed by place.
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "A_logs":
                parameter.copy_(torch.arange(1, parameter.shape[1] + 1).log() + 0.1 * noise)
            elif leaf == "dt_projs_bias":
                parameter.copy_(0.5 * noise - 3)
            elif parameter.dim() > 1:
                # stored as (1, out, in), unlike all others
                stacked = leaf in ("x_proj_weight", "dt_projs_weight")
                fan_in = parameter.shape[-1] if stacked else parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
            else:
                one = name.endswith(("weight", "Ds"))
                parameter.copy_(0.1 * noise + (1.0 if one else 0.0))
    for module in list(net.modules()):
        if isinstance(module, AttentiveStateSpace):
            module.route = RouteByPlace(module.route)
    return net


def without_kinks(net: nn.Module) -> nn.Module:
    """SiLU for every ReLU and LeakyReLU, which costs about as much.

    A kink where float32 gives another sign than float64 (one activation in some millions, so one or
    two in a training step) moves a gradient by a percent: no precision could be checked.
    """
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(module, name, nn.SiLU())
    return net


class RouteByPlace(nn.Module):
    """A route that does its work and then prefers, by far, a class that the pixel's place gives.

    Left to itself it would flip a class here and there between float32 and float64. That reorders
    the tokens and moves the picture by percents, so that no precision could be checked against
    another; Gumbel noise differs between the two as well.
    """

    margin = 1000.0

    def __init__(self, route: nn.Module) -> None:
        super().__init__()
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        logits = self.route(x)
        classes = logits.shape[-1]
        place = torch.arange(x.shape[1], device=x.device) // 5 * 29 % classes  # runs of five pixels
        return logits + self.margin * F.one_hot(place, classes)


def workloads(
    network: str, tiny: str | None = None, *, continuous: bool = False, scans: bool = False
) -> list[NetworkWorkload]:
    """Pictures and a training step: see `pictures` and `training_steps`."""
    return [*pictures(network, continuous, scans), *training_steps(network, tiny, scans)]


def pictures(network: str, continuous: bool, scans: bool) -> list[NetworkWorkload]:
    """Forward to 1280x720: x4, on a GPU also x2, x3 and eight at once; `continuous` also x2.7.

    float32, and but for scans bfloat16 too. On a CPU, where a row takes up to a minute, x2.7 is for
    HiET-SwinIR and in full runs bfloat16 for SwinIR-L. With `scans` full sides are a quarter as
    long and quick ones one window: the reference walks every pixel in turn.
    """
    on_gpu = machine.device().type == "cuda"
    part = 4 if scans else 1
    rows = []
    for size, scale, batch in (
        ("quick", 4, 1),
        *(
            ("full", scale, n)
            for scale in ((2, 3, 4) if on_gpu else (4,))
            for n in (1, 8)[: 1 + on_gpu]
        ),
    ):
        height, width = (16, 16) if scans else (40, 48)
        if size == "full":
            height, width = (round(side / scale / part) for side in (720, 1280))
        outs = [None]
        few = size == "full" and not on_gpu
        if continuous and (scale, batch) == (4, 1) and (on_gpu or network in COMPILED):
            outs.append((round(height * 2.7), round(width * 2.7)))
        for out in outs:
            to = out or (scale * height, scale * width)
            half = not (scans or out or (few and network != COMPILED[0]))
            rows += [
                NetworkWorkload(
                    subject=network,
                    shape=f"{width}x{height} to {to[1]}x{to[0]}" + f" B{batch}" * (batch > 1),
                    size=size,
                    tensors=picture(height, width, batch),
                    dtype=dtype,
                    network=network,
                    scale=scale,
                    batch=batch,
                    out=out,
                    scans=scans,
                )
                for dtype in (torch.float32, torch.bfloat16)[: 1 + half]
            ]
    return rows


def training_steps(network: str, tiny: str | None, scans: bool) -> list[NetworkWorkload]:
    """Gradients at x4: of four patches of 64x64, quick of two with the `tiny` preset, if any."""
    rows = []
    for size, name, batch, side in (
        ("quick", tiny, 2, 16 if scans else 32),
        ("full", network, 4, 16 if scans else 64),
    ):
        if name is None:
            continue
        rows.append(
            NetworkWorkload(
                subject=name,
                shape=f"x4 {batch} patches {side}x{side}",
                size=size,
                tensors=patches(batch, side),
                network=name,
                batch=batch,
                backward=True,
                scans=scans,
            )
        )
    return rows


def picture(height: int, width: int, batch: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": torch.rand(batch, 3, height, width, generator=generator)}

    return tensors


def patches(batch: int, side: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    def tensors(generator: torch.Generator) -> dict[str, Tensor]:
        # Far from any output: near zero the sign of a difference, L1's gradient, is rounding's. One
        # side for all pixels of a colour: signs at random would cancel in every gradient's sum.
        far = torch.tensor([10.0, -10.0, 10.0])[:, None, None]
        return {
            "image": torch.rand(batch, 3, side, side, generator=generator),
            "target": far.expand(batch, 3, 4 * side, 4 * side).contiguous(),
        }

    return tensors
