"""Every message that a user can see, in one table: `python -m tests.messages`.

Refusals, warnings, notes, summaries and help texts, out of the sources: a place filled in at run
time stands in braces.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("c2d_models", "c2d_kernels")
SHOWN = ("append", "echo", "need", "print", "say", "warn")
"""Names of functions whose text is shown."""
HELPED = ("Argument", "Field", "Option")
_SHORTEST = 18  # of text that is a sentence rather than a key


def table() -> list[tuple[Path, int, str]]:
    """(file, line, text) of each message."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            rows = {(node.lineno, text.strip()) for node, text in _texts(tree)}
            found += [
                (file.relative_to(ROOT), line, text)
                for line, text in sorted(rows)
                if len(text) > _SHORTEST and " " in text
            ]
    return found


def _texts(tree: ast.Module) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield node, _text(node.exc)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            if name in SHOWN:
                yield node, " ".join(map(_text, node.args))
            elif name in HELPED:
                texts = (_text(k.value) for k in node.keywords if k.arg in ("help", "description"))
                yield node, " ".join(texts)


def _text(node: ast.expr) -> str:
    """The literal text of an expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"[{_text(node.body)}|{_text(node.orelse)}]"
    if isinstance(node, ast.Call):
        return " ".join(map(_text, node.args))
    return ""


if __name__ == "__main__":
    for file, line, text in table():
        print(f"{file}:{line}: {text}")
