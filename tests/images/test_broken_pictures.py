"""Pictures broken at random: one sentence, never a traceback, a crash, a hang or gigabytes.

C2D_FUZZ multiplies the number of files (400 in the everyday run).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT = 400 * int(os.environ.get("C2D_FUZZ", "1"))


def test_broken_pictures(tmp_path):
    command = [sys.executable, "-m", "tests.images.broken_pictures", str(COUNT), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60 + COUNT, check=False
    )
    left = sorted(path.name for path in tmp_path.iterdir())
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:], left)
    report = json.loads(done.stdout)
    assert report["bad"] == {}
    assert report["slowest_s"] < 10, report
    assert report["grown_mib"] < 2048, report
    assert report["enlarged"] > COUNT / 20 and report["refused"] > COUNT / 2
    assert [name for name in left if name.startswith(".")] == []  # no half-written output
