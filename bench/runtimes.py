"""Programs other than torch that run an exported network on a CPU, on as many threads as torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import c2d_kernels

Forward = Callable[[Tensor], Tensor]


def to_onnx(net: nn.Module, image: Tensor) -> bytes:
    """An ONNX file of the network for images of this shape."""
    with c2d_kernels.backend("reference"):  # operators of ours mean nothing to ONNX
        program = torch.onnx.export(
            net, (image,), input_names=["image"], dynamo=True, verbose=False
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def onnx_runtime(model: bytes) -> Forward:
    """Microsoft's, on its own CPU kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def openvino(model: bytes) -> Forward:
    """Intel's, in float32, tuned for the time of one picture."""
    from openvino import Core

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = Core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    return lambda image: torch.from_numpy(compiled({"image": image.numpy()})[0])


RUNTIMES = (
    ("ONNX Runtime", "onnxruntime", onnx_runtime),
    ("OpenVINO", "openvino", openvino),
)
"""Name, package, and how it makes an ONNX file a function of images."""
