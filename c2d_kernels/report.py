"""The report of `info()`: the library, and the kernel that each operator would take here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import dispatch, native
from .operators import operators


@dataclass(frozen=True)
class Choice:
    """The choice of one operator for tensors of one device.

    Attributes:
        operator: its name.
        device: "cpu" or "cuda".
        backend: what `auto` takes.
        refusals: backend -> why it cannot run, for those that come before it.
    """

    operator: str
    device: str
    backend: str
    refusals: dict[str, str]


@dataclass(frozen=True)
class Info:
    """The state of the package on this machine; print it."""

    torch: str
    cuda: str
    native: str
    requested: str
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        lines = [
            f"torch      {self.torch}",
            f"CUDA       {self.cuda}",
            f"native     {self.native}",
            f"requested  {self.requested}",
            "",
            "What `auto` takes, and why nothing before it:",
        ]
        for choice in self.choices:
            lines.append(f"  {choice.operator:26} on {choice.device:5} {choice.backend}")
            for reason in dict.fromkeys(choice.refusals.values()):
                names = [name for name, why in choice.refusals.items() if why == reason]
                lines.append(f"      not {', '.join(names)}: {reason}")
        return "\n".join(lines)

    __repr__ = __str__


def info() -> Info:
    """Describe what was built, what loaded, what each operator would use here, and why.

    Returns:
        A record to print or to look into: `info().choices` holds operator, device, backend and the
        reasons. Uninstalled or broken parts are reported, never raised.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    cuda = torch.cuda.get_device_name() if len(devices) > 1 else "no device that torch can use"
    choices = tuple(_choice(name, device) for name in operators for device in devices)
    return Info(torch.__version__, cuda, native.build_info(), dispatch.requested(), choices)


def _choice(name: str, device: str) -> Choice:
    known = {kernel.backend: kernel for kernel in dispatch.kernels(name)}
    example = operators[name].example(torch.device(device))
    refusals: dict[str, str] = {}
    for backend in dispatch.KERNEL_BACKENDS:
        kernel = known.get(backend)
        reason: str | None = "no such kernel in this version"
        if kernel is not None:
            reason = kernel.can_run(*example)
        if reason is None:
            return Choice(name, device, backend, refusals)
        refusals[backend] = reason
    return Choice(name, device, "reference", refusals)
