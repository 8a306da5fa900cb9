"""Operators called from eight Python threads at once give what one thread gets.

C2D_FUZZ multiplies the calls (24 of each operator, forward and backward, in the everyday run).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import c2d_kernels
from c2d_kernels import native
from tests.kernels.cases import CASES
from tests.kernels.rows import Case, Tensors

THREADS = 8
ROUNDS = 3 * int(os.environ.get("C2D_FUZZ", "1"))
OPERATORS = sorted({case.operator for case in CASES.values()})


def results(case: Case, tensors: Tensors) -> list[torch.Tensor]:
    """The result, and the gradients of its sum."""
    leaves = {name: x.clone().requires_grad_(name not in case.fixed) for name, x in tensors.items()}
    with c2d_kernels.backend("cpu"):
        outputs = case.outputs(leaves)
    wanted = [x for x in leaves.values() if x.requires_grad]
    grads = torch.autograd.grad(sum(out.sum() for out in outputs), wanted, allow_unused=True)
    return [*outputs, *(grad for grad in grads if grad is not None)]


@pytest.mark.skipif(native.missing is not None, reason=str(native.missing))
@pytest.mark.parametrize("operator", OPERATORS)
def test_eight_threads_get_what_one_gets(operator: str) -> None:
    cases = [case for case in CASES.values() if case.operator == operator]
    tensors = {case.name: case.tensors(torch.float32) for case in cases}
    expected = {case.name: results(case, tensors[case.name]) for case in cases}

    def work(thread: int) -> list[str]:
        wrong = []
        for number in range(ROUNDS):
            case = cases[(thread + number) % len(cases)]
            found = results(case, tensors[case.name])
            same = map(torch.equal, found, expected[case.name])
            if not all(same):
                wrong.append(case.name)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert [name for names in pool.map(work, range(THREADS)) for name in names] == []
