"""Freed memory stays: what a step maps, the next one does not map again."""

import subprocess
import sys

import pytest

from c2d_models.training import allocator

STEPS = """
import resource, torch
from c2d_models.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(12 * 2**20) for _ in range(2)]  # 48 MiB each: 12288 pages of 4 KiB
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without, took_effect = faults(), keep_freed_memory()
for _ in range(6):  # the heap settles after some steps: an aligned block needs a hole with slack
    faults()
print(without, faults(), took_effect)
"""


def test_large_blocks_are_reused():
    if not allocator.keep_freed_memory():
        pytest.skip("the C library is not glibc")
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    without, kept, took_effect = run.stdout.split()
    assert took_effect == "True"
    assert int(without) > 500  # also with huge pages of 2 MiB for some
    assert int(kept) < int(without) / 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() is False
