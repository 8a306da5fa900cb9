"""Runs an nvcc command with ptxas's report on, and prints one line a kernel and architecture.

    python csrc/nvcc_report.py nvcc -c kernels.cu -o kernels.o

Standard library only: setup.py puts it before each nvcc command.
"""

from __future__ import annotations

import re
import subprocess
import sys

ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(\w+)' for '(\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"ptxas info\s*: Used (\d+) registers.*?(?:(\d+) bytes smem)?$")
CHATTER = re.compile(r"ptxas info|^\s*$|bytes stack frame|Remark: The warnings can be")


def kernels(report: str) -> list[tuple[str, str, int, int, int]]:
    """(kernel, architecture, registers, bytes of shared memory, bytes spilled) from the report."""
    found, name, arch, spilled = [], "", "", 0
    for line in report.splitlines():
        if entry := ENTRY.search(line):
            name, arch = readable(entry[1]), entry[2]
        elif spill := SPILL.search(line):
            spilled = int(spill[2])
        elif (used := USED.search(line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            found.append((name, arch, int(used[1]), int(shared[1]) if shared else 0, spilled))
            name = ""
    return sorted(found)


def readable(symbol: str) -> str:
    """`sweep<float, 8, 1>` from its mangled name, as far as these kernels' names go."""
    match = re.match(r"_ZN?(?:3c2d)?(?:4cuda)?(?:\d+_GLOBAL__N__\w+?)?(\d+)", symbol)
    if match is None:
        return symbol
    end = match.end() + int(match[1])
    name, rest = symbol[match.end() : end], symbol[end:]
    if not rest.startswith("I"):
        return name
    words = {"f": "float", "d": "double"}
    arguments = re.findall(
        r"\d+(__nv_bfloat16|__half)|L[ib](\d+)E|(f|d)(?=L)", rest.split("EEv")[0] + "E"
    )
    parts = [kind or number or words[letter] for kind, number, letter in arguments]
    return f"{name}<{', '.join(parts)}>"


def main(command: list[str]) -> int:
    done = subprocess.run(
        [*command, "-Xptxas=-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in done.stdout.splitlines():
        if not CHATTER.search(line):
            print(line)
    for name, arch, registers, shared, spilled in kernels(done.stdout):
        print(
            f"{arch}  {name}: {registers} registers, {shared} B shared, "
            f"{f'{spilled} B spilled' if spilled else 'no spills'}"
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
