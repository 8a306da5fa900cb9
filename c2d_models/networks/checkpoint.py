"""The file that holds a network: its weights, what it is, how it came to be."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import ModelFileError
from ..files import write_whole
from .authors import recognise
from .registry import NETWORKS, create
from .wrappings import inner_names, state_of, unwrapped

if TYPE_CHECKING:
    from .network import Network

FILE_NAME = "model.safetensors"
"""The model file in a folder: of `save_pretrained`, of a training run."""


FORMAT = 1
"""Version of the metadata; a file with a higher one is refused."""


def save(
    net: Network,
    path: str | Path,
    record: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a network with all that `load` needs, as safetensors.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Args:
        net: the network, or what torch.compile, DataParallel, DDP or AveragedModel made of it; of
            parametrized and pruned weights the results are written. Its name, scale and config go
            into the file's metadata.
        path: the file, `*.safetensors`.
        record: how the weights came to be (JSON values), kept for `read_record`; the network's
            own by default, which it has from the file that it was loaded from.
        dtype: store floating-point weights as this, e.g. torch.float16; as they are by default.

    Raises:
        ModelFileError: a weight that is not plain: of an adapter, quantised or sharded.
    """
    path = Path(path)
    net = cast("Network", unwrapped(net))
    header = {"name": net.name, "scale": net.scale, "config": net.config, "format": FORMAT}
    state = {
        name: (value.to(dtype) if dtype and value.is_floating_point() else value)
        .detach()
        .cpu()
        .contiguous()
        for name, value in state_of(net, _names(net)).items()
    }
    record = net.record if record is None else record
    write_whole(
        path, to_bytes(state, {"c2d_isr": json.dumps(header), "record": json.dumps(record)})
    )


def load(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Network:
    """The network in a file that `save` wrote or that a published network's authors did.

    Args:
        path: .safetensors, .pth or .pt.
        device, dtype: as for `c2d_models.load`.

    Raises:
        ModelFileError: a broken file, or one that holds something else.
    """
    path = Path(path)
    state, metadata = read(path)
    if "c2d_isr" in metadata:
        state = inner_names(path, state)
        net = _build(path, header_of(path, metadata), state)
    else:
        header, state = recognise(path, state)
        net = _build(path, header, state)
    half = (torch.float16, torch.bfloat16)
    state = {name: value.float() if value.dtype in half else value for name, value in state.items()}
    if any(value.dtype == torch.float64 for value in state.values()):
        net.double()
    _fill(path, net, state)
    net.record = record_of(path, metadata)
    return net.to(device=device, dtype=dtype).eval()


def file_in(folder: Path) -> Path:
    """The model file in a folder; ModelFileError if there is none."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise ModelFileError(f"{folder} is a folder without a {FILE_NAME}")
    return file


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """A file's content and its metadata; pickles are read without running code."""
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (pickle.UnpicklingError, LookupError) as error:  # plain text is read as opcodes
        raise ModelFileError(
            f"{path} is not a file of weights: not a pickle, or one that holds more than tensors"
        ) from error
    except Exception as error:  # on a damaged file the unpickler may raise anything
        reason = str(error).split("\n")[0]
        raise ModelFileError(f"{path} cannot be read as a model file: {reason}") from error


def record_of(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """How the weights came to be, as the file says; empty if it does not."""
    try:
        record = json.loads(metadata.get("record", "{}"))
    except ValueError as error:
        raise ModelFileError(f"{path} holds a training record that cannot be read") from error
    if not isinstance(record, dict):
        raise ModelFileError(f"{path} holds a training record that is not a table of values")
    return record


def header_of(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Our metadata of a file, checked."""
    try:
        header = json.loads(metadata["c2d_isr"])
        version = header["format"]
        name, scale, config = header["name"], header["scale"], header["config"]
        kinds = (name, str), (scale, int | None), (config, dict), (version, int)
        if not all(isinstance(value, kind) for value, kind in kinds):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} does not say which network it holds") from error
    if version > FORMAT:
        raise ModelFileError(
            f"{path} was written by a newer version of this package (format {version}); update it"
        )
    return header


def _build(path: Path, header: dict[str, Any], state: dict[str, Tensor]) -> Network:
    """The network that the header describes, once it is clear that the weights would fit it."""
    if header["name"] not in NETWORKS:
        raise ModelFileError(
            f"{path} holds a network {header['name']!r}, which this version does not know: it has "
            f"{', '.join(NETWORKS)}"
        )
    # A few broken bytes could ask for any number of layers.
    most = sum(value.numel() for value in state.values())
    if any(number > most for number in _numbers([header["scale"], header["config"]])):
        raise ModelFileError(f"{path} describes a larger network than its weights are for")
    try:
        with torch.device("meta"):
            plan = create(header["name"], header["scale"], config=header["config"])
        _check_fit(path, plan, state)
        return create(header["name"], header["scale"], config=header["config"])
    except ModelFileError:
        raise
    except (ArithmeticError, TypeError, ValueError, RuntimeError, AttributeError, LookupError) as e:
        raise ModelFileError(
            f"{path} describes a {header['name']} that cannot be built: {e}"
        ) from e


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in JSON values, and the sum of each list of them."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, dict)):
        inside = [
            list(_numbers(each)) for each in (value.values() if isinstance(value, dict) else value)
        ]
        yield from chain.from_iterable(inside)
        yield sum(numbers[0] for numbers in inside if numbers)


def _names(net: Network) -> list[str] | None:
    """Names in the state dict of the network as its class makes it; None for others' networks."""
    if net.name not in NETWORKS:
        return None
    with torch.device("meta"):
        return list(create(net.name, net.scale, config=net.config).state_dict())


def _fill(path: Path, net: Network, state: dict[str, Tensor]) -> None:
    """Load strictly."""
    _check_fit(path, net, state)
    net.load_state_dict(state)


def _check_fit(path: Path, net: Network, state: dict[str, Tensor]) -> None:
    """ModelFileError unless names and shapes agree; the first difference makes the sentence."""
    wanted = net.state_dict()
    for name in [*wanted, *state]:
        if name not in state:
            fault = f"{name} is missing"
        elif name not in wanted:
            fault = f"it has no {name}"
        elif wanted[name].shape != state[name].shape:
            fault = f"{name} is {tuple(wanted[name].shape)}, not {tuple(state[name].shape)}"
        else:
            continue
        raise ModelFileError(
            f"{path} does not fit {net.name} x{net.scale or ' continuous'}: {fault}"
        )
