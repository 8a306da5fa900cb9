"""`python -m bench.scores Set5 Set14`: score the shipped models, for `c2d models` and the README.

Each model gets a file NAME.scores.json beside its weights, by the code and the rule of `c2d eval`;
then the README's table is written anew. Run it after weights have changed: scores know the digest
of the weights that they belong to, and those of others are not shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import ROOT
from c2d_models.evaluation import results as scores
from c2d_models.evaluation import run as evaluation
from c2d_models.pretrained import loading


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for folders that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench.scores", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="benchmarks: HR and LR_bicubic below")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="its table's file")
    options = parser.parse_args(arguments)
    for info in loading.list_models():
        try:
            results = evaluation.run([info.name], options.folders)
        except ValueError as error:
            print(f"{str(error).rstrip('.')}.", file=sys.stderr)
            return 2
        print(f"written: {scores.keep(results, info.path)}")
    from bench import readme

    readme.fill(options.readme, {"scores": readme.scores_table(loading.WEIGHTS)})
    print(f"written: the table of scores in {options.readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
