"""The programs in examples/ run as they are."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAYS = {
    "enlarge_array.py": "(160, 240, 3) uint8 -> (432, 648, 3) uint8",
    "accelerate_network.py": "replaced   12 x Swin2SRLayer",
    "train_on_folder.py": "hiet_swinir_tiny x2",
    "attribution_map.py": "diffusion index",
    "selective_scan.py": "(1, 48, 4096), mean square",
}


def test_every_script_is_in_the_table():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_a_script_runs(name, tmp_path, photos):
    if name == "accelerate_network.py" and find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    arguments = [photos] if name == "train_on_folder.py" else []
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout


def test_the_notebook_runs(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert "torch.Size([1, 3, 640, 960])" in capsys.readouterr().out
