"""Resources of the Triton kernels by ptxas, compiled here for GPUs that need not be here."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SUMS = (  # pointers to float32 in every kernel
    *("table_ptr", "lse_ptr", "delta_ptr", "partial_ptr", "m_ptr", "g_ptr"),
    *("weight_ptr", "weight_bias_ptr", "dweight_ptr"),
)


@dataclass(frozen=True)
class Usage:
    """Registers per thread, bytes spilled per thread, bytes of shared memory per block."""

    registers: int
    stack: int
    shared: int


def usage(
    kernel,
    architecture: int,
    dtype: torch.dtype,
    constants: dict[str, object],
    warps: int,
    types: dict[str, str] | None = None,
) -> Usage:
    """Compile a kernel of which only the named constants are compile-time; integers are 32 bit.

    types: Triton's names of the types of pointers that point neither at dtype nor at sums.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name in SUMS else f"*{NAMES[dtype]}"
            signature[name] = (types or {}).get(name, signature[name])
            attributes[place,] = [["tt.divisibility", 16]]  # as torch allocates
        elif name.endswith("strides"):
            signature[name] = ("i32",) * 3
        else:
            signature[name] = ("i32",) * 2 if name == "size" else "i32"
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "num_stages": 1},
    )
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [program, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", text)[1]) for word in ("REG", "STACK"))
    return Usage(registers, stack, compiled.metadata.shared)
