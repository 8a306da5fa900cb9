"""SRFormer-L: permuted window attention throughout."""

from __future__ import annotations

import pytest

from bench.contenders import Contender
from bench.networks.workloads import CONTENDERS, NetworkWorkload, workloads


@pytest.mark.race(workloads=workloads("srformer_l"), contenders=CONTENDERS)
def test_srformer_l(workload: NetworkWorkload, contender: Contender, fill_row) -> None:
    fill_row(workload, contender)
