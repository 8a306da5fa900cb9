"""Where kernels multiply bfloat16 (AVX-512 BF16)."""

from __future__ import annotations

import pytest

from c2d_kernels import native

COMPILED = native.missing is None and "avx512bf16" in native.build_info()
needs_products = pytest.mark.skipif(
    not native.bfloat16,
    reason=native.missing
    or ("CPU without AVX-512 BF16, or C2D_ISA" if COMPILED else "compiled without AVX-512 BF16"),
)
