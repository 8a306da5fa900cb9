"""An operator is in all of its places, and nothing in them belongs to none."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import c2d_kernels
import c2d_kernels.ops
from c2d_kernels import dispatch
from c2d_kernels.operators import operators
from tests.kernels.cases import FLOPS, SMALL

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent.name for path in (ROOT / "c2d_kernels" / "ops").glob("*/__init__.py"))


def folder_of(operator: str) -> str:
    """The folder in c2d_kernels/ops that defines it."""
    return operators[operator].reference.__module__.split(".")[2]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_can_be_imported_beside_its_function(folder: str) -> None:
    package = importlib.import_module(f"c2d_kernels.ops.{folder}")
    assert getattr(c2d_kernels.ops, folder) is package
    for module in ("op", "reference", "native"):
        importlib.import_module(f"c2d_kernels.ops.{folder}.{module}")
    assert callable(getattr(c2d_kernels, folder))


def test_every_folder_defines_operators_that_are_public() -> None:
    assert {folder_of(operator) for operator in operators} == set(FOLDERS)
    assert set(operators) <= set(c2d_kernels.__all__)
    assert all(getattr(c2d_kernels, name) for name in c2d_kernels.__all__)


def test_every_folder_has_tests_and_a_benchmark() -> None:
    assert sorted(path.parent.name for path in ROOT.glob("tests/kernels/*/cases.py")) == FOLDERS
    benchmarks = (ROOT / "bench" / "operators").glob("test_*.py")
    assert sorted(path.stem.removeprefix("test_") for path in benchmarks) == FOLDERS


def test_sources_of_native_kernels_are_in_an_operators_folder() -> None:
    shared = {"common"}
    folders = {path.parent.name for path in ROOT.glob("csrc/*/*.cpp")}
    assert folders - shared <= set(FOLDERS)


@pytest.mark.parametrize("operator", operators)
def test_every_operator_is_tested_in_each_form(operator: str) -> None:
    names = [case.name for case in SMALL if case.operator == operator]
    assert names and all(FLOPS[name] > 0 for name in names)
    assert any(kernel.backend == "cpu" for kernel in dispatch.kernels(operator))


def test_the_document_s_table_names_every_operator() -> None:
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(operators)
