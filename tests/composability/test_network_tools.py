"""Every network, with either up-sampler, under every tool of network_tools.py."""

from __future__ import annotations

import pytest
import torch

from c2d_models import create
from tests.composability.network_tools import TOOLS, NetworkTool, Subject
from tests.networks.test_networks import ONE_BLOCK, TINY, lively

SCALES = {"x2": 2, "continuous": None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("tool", [pytest.param(tool, id=tool.name) for tool in TOOLS])
def test_network(tool: NetworkTool, name: str, scale: int | None) -> None:
    torch.manual_seed(11)
    net = lively(name, scale, ONE_BLOCK)
    size = {} if scale else {"size": (21, 19)}
    x = torch.rand(1, 3, 11, 12)
    config = ONE_BLOCK.get(name)
    tool.use(Subject(net, x, size, again=lambda: create(name, scale, config=config)))
