"""Parameters and multiply-adds of every network, beside what its authors published."""

from __future__ import annotations

import torch

import c2d_models
from bench.published import PUBLISHED
from c2d_models.networks import NETWORKS
from c2d_models.networks.complexity import gmacs, parameters

SCALES = (2, 3, 4)


def networks() -> list[str]:
    """Every network of full size, the published ones first."""
    return [*PUBLISHED, *(n for n in NETWORKS if n not in PUBLISHED and not n.endswith("_tiny"))]


def rows() -> list[tuple[str, int, int, float, int | None, float | None]]:
    """(network, scale, parameters, GMACs, published parameters, published GMACs)."""
    found = []
    for name in networks():
        for scale in SCALES:
            with torch.device("meta"):
                net = c2d_models.create(name, scale)
            theirs = PUBLISHED.get(name, {}).get(scale)
            found.append(
                (
                    *(name, scale, parameters(net), gmacs(net)),
                    *((theirs.parameters, theirs.gmacs) if theirs else (None, None)),
                )
            )
    return found


def table() -> list[str]:
    """As Markdown, with a sentence on how it is counted."""
    lines = [
        "Multiply-adds to 1280x720, 10⁹, each operator by its definition "
        "(`c2d_models.networks.complexity`); published: the authors' papers, whose tool counts "
        "norms and activations as well.",
        "",
        "| network | scale | parameters | GMACs | published parameters | published GMACs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, scale, count, cost, their_count, their_cost in rows():
        theirs = [f"{their_count:,}" if their_count else "-", str(their_cost or "-")]
        lines.append(f"| `{name}` | {scale} | {count:,} | {cost:.1f} | {' | '.join(theirs)} |")
    return [*lines, ""]
