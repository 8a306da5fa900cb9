"""docs/composability.md out of the tests' tables: `python -m tests.composability.document`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from c2d_kernels.operators import operators
from tests.composability import network_tools, operator_tools
from tests.networks.test_networks import TINY

PAGE = Path(__file__).parents[2] / "docs" / "composability.md"
_OPENING = """# In other people's hands

What other tools do to the operators and to the networks, and that the result stays right. Each row
is a test (`tests/composability`): the result is compared with the reference's, or the call is
refused by a sentence that names the way out. This page is made from the tests' tables:
`python -m tests.composability.document`. Compilation in one graph and `torch.export` with dynamic
sizes are tested beside the networks (`tests/networks/test_networks.py`) and the operators
(`tests/kernels/test_export.py`).
"""


def page() -> str:
    """The page's text."""
    lines = [_OPENING, "## Operators", "", f"Each of {_listed(sorted(operators))}.", ""]
    lines += ["| Tool | Result | |", "|---|---|---|"]
    for tool in operator_tools.TOOLS:
        lines.append(f"| {tool.name} | {_result(tool.refusal)} | {tool.remark} |")
    lines += ["", "## Networks", ""]
    lines += [
        f"Each of {_listed(TINY)}, with a pixel-shuffle and with the continuous up-sampler.",
        "",
    ]
    lines += ["| Tool | Result | |", "|---|---|---|"]
    for each in network_tools.TOOLS:
        remark = "; ".join(filter(None, [each.remark, each.needs and f"tested with {each.needs}"]))
        lines.append(f"| {each.name} | {_result(each.refusal)} | {remark} |")
    return "\n".join(lines) + "\n"


def _result(refusal: str) -> str:
    return f'refused: "... {refusal}"' if refusal else "right"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
