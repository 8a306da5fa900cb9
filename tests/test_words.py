"""Words: how docstrings open."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("bench", "c2d_kernels", "c2d_models", "csrc", "docs", "examples", "tests")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_docstrings_open_with_a_noun_or_a_verb():
    files = [
        *ROOT.glob("*.py"),
        *(file for place in PLACES for file in (ROOT / place).rglob("*.py")),
    ]
    docstrings = [
        (file.relative_to(ROOT), text.split()[0])
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node))
    ]
    assert len(docstrings) > 1000
    assert [each for each in docstrings if each[1] in ("What", "Of")] == []
