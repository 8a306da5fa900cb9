"""Words: how docstrings open, and phrases that no native engineer would use."""

import ast
import re
from pathlib import Path

from tests import messages

ROOT = Path(__file__).parents[1]
PLACES = ("bench", "c2d_kernels", "c2d_models", "csrc", "docs", "examples", "tests")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STRANGE = {
    r"moving pictures?": "video",
    r"turned round": "transposed",
    r"so many (places|tokens) further": "shifted by that many tokens",
    r"the other way (about|round)": "vice versa",
    r"of something else": "that holds something else",
    r"(multiply-adds|bytes|numbers) a (token|pixel|query|row|step|value)\b": "per token ...",
    r"(a row|one line|a line|one) an? (set|image|file|operator|network|page)\b": "one per set ...",
}
"""Phrases, and what is said instead."""


def files(*endings: str) -> list[Path]:
    found = [file for ending in endings for file in ROOT.glob(f"*{ending}")]
    for place in PLACES:
        found += [file for ending in endings for file in (ROOT / place).rglob(f"*{ending}")]
    return [file for file in found if file != Path(__file__)]


def test_docstrings_open_with_a_noun_or_a_verb():
    docstrings = [
        (file.relative_to(ROOT), text.split()[0])
        for file in files(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node))
    ]
    assert len(docstrings) > 1000
    assert [each for each in docstrings if each[1] in ("What", "Of")] == []


def test_no_strange_phrases():
    """In docstrings, comments, headers, documents and messages, over line ends too."""
    found = []
    for file in files(".py", ".md", ".h", ".cpp", ".cu", ".cuh"):
        text = re.sub(r"\s*\n\s*(//|#)?\s*", " ", file.read_text(encoding="utf-8"))
        found += [
            (str(file.relative_to(ROOT)), match.group(), instead)
            for phrase, instead in STRANGE.items()
            for match in re.finditer(phrase, text, re.IGNORECASE)
        ]
    assert found == []


def test_every_message_is_in_the_table():
    """Of the kinds there are: a refusal, a warning, a note, a help text."""
    texts = " ".join(text for _, _, text in messages.table())
    for part in (
        "it must be from 1 to 100.",
        "float32 is faster on this processor",
        "an extra channel that is not alpha is left out",
        "As large as fits inside, undistorted.",
    ):
        assert part in texts
