"""Who imports whom: no circle anywhere, and arrows between rooms run downwards only.

Imports inside functions count, and those for type checkers alone do not.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("c2d_models", "c2d_kernels", "bench")
FLOORS = [  # of c2d_models, from the top; packages on one floor do not import each other
    {"cli"},
    {"page"},
    {"upscaling", "training", "evaluation"},
    {"pretrained", "images", "video"},
    {"networks"},
]
FOUNDATIONS = {"errors", "devices", "files", "version", "ray_pool"}  # which every room may import


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of the packages that a module imports."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return {each for each in found if each in MODULES} - {name}


def statements(node: ast.AST) -> list[ast.AST]:
    """All nodes below, but for the bodies of `if TYPE_CHECKING`."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        found += [child, *statements(child)]
    return found


GRAPH = {name: imported(name) for name in MODULES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_the_graph_sees_imports():
    """It would find a circle, and it does find the arrows that are there."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert "c2d_models.networks.hub" in GRAPH["c2d_models.networks.network"]  # in a function
    assert "c2d_models.upscaling.batch" in GRAPH["c2d_models.cli.upscale"]
    assert len(GRAPH) > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_modules(package):
    inside = {name: others for name, others in GRAPH.items() if name.startswith(package)}
    assert circles({name: others & inside.keys() for name, others in inside.items()}) == []


def room(name: str) -> str:
    return name.split(".")[1] if name.count(".") else ""


def test_arrows_between_rooms_run_downwards():
    floor = {each: number for number, rooms in enumerate(FLOORS) for each in rooms}
    own = {name for name in GRAPH if name.startswith("c2d_models.")}
    assert {room(name) for name in own} == {*floor, *FOUNDATIONS}
    wrong = [
        f"{name} -> {other}"
        for name in sorted(own)
        for other in sorted(GRAPH[name] & own)
        if room(other) not in (room(name), *FOUNDATIONS)
        and not (room(name) in floor and floor[room(name)] < floor[room(other)])
    ]
    assert wrong == []


def test_the_kernels_know_nothing_of_the_models():
    above = {
        f"{name} -> {other}"
        for name, others in GRAPH.items()
        for other in others
        if name.startswith("c2d_kernels") and not other.startswith("c2d_kernels")
    }
    assert above == set()
