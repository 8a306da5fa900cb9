"""FLOP formulas: numbers worked out by hand, and what torch's counter reports for the ops."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from c2d_kernels.ops.channel_correlation import op as channel_correlation
from tests.kernels.cases import CASES, FLOPS, FORMULAS, SMALL
from tests.kernels.rows import Case, Formula


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.what)
def test_formula(formula: Formula) -> None:
    assert formula.value == formula.by_hand


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_counter_sees_the_definition(case: Case, take) -> None:
    tensors = {n: x.requires_grad_(n in case.shapes) for n, x in case.tensors().items()}
    with take(case, "op"), FlopCounterMode(display=False) as forward:
        loss = case.outputs(tensors)[0].sum()
    with take(case, "op"), FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() == FLOPS[case.name]
    assert backward.get_total_flops() == 2 * FLOPS[case.name]


@pytest.mark.parametrize("name", ["attention", "permuted", "channel", "query-coords"])
def test_reference_does_what_the_definition_says(name: str, take) -> None:
    case = CASES[name]
    # The small channel case has cut windows, which plain ATen pads: give it whole ones.
    tensors = {n: torch.zeros(2, 8, 6, 3) for n in "qv"} if name == "channel" else case.tensors()
    expected = channel_correlation.flops(2, 8, 6, 3) if name == "channel" else None
    with take(case, "reference"), FlopCounterMode(display=False) as counter:
        case.call(tensors)
    assert counter.get_total_flops() == (expected or FLOPS[name])
