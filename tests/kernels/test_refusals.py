"""Each refusal: which error, and the sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kernels.cases import REFUSALS
from tests.kernels.rows import Refusal


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.id)
def test_refusal(refusal: Refusal) -> None:
    case = refusal.case
    tensors, options = case.tensors(), dict(case.options)
    for name, value in refusal.change.items():
        target = tensors if name in tensors else options
        target[name] = value(target[name]) if callable(value) else value
    changed = replace(case, options=options)
    with pytest.raises(refusal.error) as caught:
        changed.call(tensors)
    message = str(caught.value)
    assert message.startswith(refusal.sentence)
    assert message.endswith(".") and "\n" not in message
