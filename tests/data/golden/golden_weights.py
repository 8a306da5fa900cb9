"""Deterministic, non-trivial weights for a published network, from its state-dict listing alone.

Each parameter is filled by a rule that depends on its name and shape only, so the same weights can
be made anywhere, without a checkpoint.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def listing(name: str) -> list[list]:
    """Rows [name, shape, dtype, "parameter" | "buffer"] of `keys/<name>.json`."""
    return json.loads((FOLDER / "keys" / f"{name}.json").read_text())


def golden_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 seeded by crc32(name), scaled by the role of the parameter."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "A_logs":  # (channels, states), around log(1..N)
        return np.log(np.arange(1, shape[-1] + 1)) + 0.1 * x
    if leaf in ("Ds", "scale1", "scale2"):  # skips
        return 0.5 + 0.1 * x
    if leaf == "dt_projs_bias":  # a step size of softplus(-3), about 0.05
        return -3.0 + 0.5 * x
    if leaf == "relative_position_bias_table":
        return 0.5 * x
    if leaf in ("x_proj_weight", "dt_projs_weight"):  # (1, out, in)
        return x / np.sqrt(shape[-1])
    if len(shape) >= 2:  # linear, convolution
        return x / np.sqrt(np.prod(shape[1:]))
    if leaf == "weight":  # gain of a norm
        return 1.0 + 0.1 * x
    return 0.1 * x  # bias


def golden_state_dict(name: str) -> dict[str, np.ndarray]:
    """{name: float64 array} for the parameters of `keys/<name>.json`; buffers are left out."""
    return {
        key: golden_array(key, tuple(shape))
        for key, shape, _, kind in listing(name)
        if kind == "parameter"
    }
