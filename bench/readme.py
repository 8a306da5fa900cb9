"""Tables of README and docs/networks.md: scores of the shipped models, speed, sizes of networks.

`python -m bench.readme` fills those that need no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import complexity
from bench.stored import Results, markdown
from c2d_models.evaluation import results as scores
from c2d_models.networks.authors import FAMILIES
from c2d_models.pretrained.loading import WEIGHTS, list_models, read_record

OF_AUTHORS = "its authors' files load as they are"
SHIPPED = "shipped"
UNTRAINED = "none: train it yourself"


ROOT = Path(__file__).resolve().parents[1]


def rewrite(results: Results) -> None:
    """Fill every table."""
    fill(ROOT / "README.md", {"scores": scores_table(), "benchmarks": speed_table(results)})
    fill(ROOT / "docs" / "networks.md", {"networks": networks_table()})


def fill(readme: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """Put tables between their marks in a file."""
    text = readme.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = filled(text, name, table)
    readme.write_text(text, encoding="utf-8")


def filled(text: str, name: str, table: Sequence[str]) -> str:
    """The text with the table between the marks of that name.

    Raises:
        ValueError: the marks are missing.
    """
    begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
    if begin not in text or end not in text:
        raise ValueError(f"there is no place for a table: {begin} and {end}.")
    before, rest = text.split(begin)
    return "\n".join([before + begin, *table, end + rest.split(end)[1]])


def scores_table(folder: Path = WEIGHTS) -> list[str]:
    """PSNR-Y of the shipped models, as measured by `python -m bench.scores`, kept beside them."""
    psnr: dict[str, dict[tuple[str, float], float]] = {}
    parameters = {}
    for path in sorted(folder.glob("*.safetensors")):
        for row in scores.kept(path):
            psnr.setdefault(row["model"], {})[row["dataset"], row["scale"]] = row["psnr_y"]
            parameters[row["model"]] = row["params"]
    columns = sorted({column for row in psnr.values() for column in row})
    columns.sort(key=lambda column: (scores.rank(column[0]), column[1]))
    rows = [
        [
            model if model == scores.BICUBIC else f"`{model}`",
            f"{parameters[model]:,}" if parameters[model] else "",
            *(f"{row[column]:.2f}" if column in row else "" for column in columns),
        ]
        for model, row in psnr.items()
    ]
    headings = ["shipped", "parameters", *(f"{name} x{scale:g}" for name, scale in columns)]
    return markdown(headings, rows)


def networks_table() -> list[str]:
    """Parameters and multiply-adds at x4."""
    origin = {preset: OF_AUTHORS for family in FAMILIES for preset in family.presets}
    origin |= {read_record(model.name)["config"]["network"]: SHIPPED for model in list_models()}
    rows = [
        [f"`{name}`", f"{count:,}", f"{cost:.1f}", origin.get(name, UNTRAINED)]
        for name, scale, count, cost, *_ in complexity.rows()
        if scale == 4
    ]
    return markdown(["network", "parameters (x4)", "GMACs to 1280x720 (x4)", "weights"], rows)


def speed_table(results: Results) -> list[str]:
    """The networks, one image, x4: our time and how many times as long others take."""
    peers = ("torch.compile", "ONNX Runtime", "materialised")
    rows = []
    for subject in results.subjects():
        ours = results.race(
            subject=subject, backend="auto", dtype="float32", direction="forward"
        )  # the first: x4
        if ours is None:
            continue
        wanted = {name: ours[name] for name in ("subject", "shape", "dtype", "direction")}
        if " to " not in str(ours["shape"]):
            continue
        cells = [f"`{subject}`", ours["shape"], f"{ours['median_ms'] / 1e3:.2f} s"]
        cells.append(f"{ours['ratio']:.1f}")
        for name in peers:
            row = results.race(backend=name, **wanted)
            cells.append("-" if row is None else f"{ours['ratio'] / row['ratio']:.1f}")
        rows.append(cells)
    headings = ["network", "picture", "these operators", "plain PyTorch", *peers[:2]]
    here = results.machine
    return [
        *markdown([*headings, "as its authors write it"], rows),
        "",
        f"float32, {here['threads']} threads of {here.get('gpu', here['processor'])}, torch "
        f"{here['torch']}; the columns after our time say how many times as long the others take.",
    ]


if __name__ == "__main__":
    fill(ROOT / "README.md", {"scores": scores_table()})
    fill(ROOT / "docs" / "networks.md", {"networks": networks_table()})
