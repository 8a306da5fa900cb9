"""Results of an evaluation, the tables that show them, and the means that a shipped model keeps."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..errors import EvaluationError

BICUBIC = "bicubic"
_TEXT_COLUMNS = ("set", "scale", "model")
_NUMBER_COLUMNS = ("params", "GMACs", "PSNR-Y", "over bicubic", "SSIM-Y", "s/image")
_CSV_COLUMNS = ("dataset", "scale", "model", "params", "gmacs", "ensemble", "rule")


@dataclass(frozen=True)
class ImageScore:
    """One image: PSNR-Y in dB, SSIM-Y, and the seconds that enlarging it took."""

    name: str
    psnr_y: float
    ssim_y: float
    seconds: float


@dataclass(frozen=True)
class Result:
    """One model on one set at one scale.

    Attributes:
        model: name or file of the network, or "bicubic".
        params: its number of parameters (0 for bicubic).
        gmacs: 10^9 multiply-adds of a picture of 1280x720 made at this scale (0 for bicubic).
        lr: where the LR images came from, "files" or "imresize".
        rule: by which PSNR is computed, a key of `metrics.RULES`.
        border: pixels left out at each side, ceil(scale).
        left_out: a sentence for each image that could not be read; the means are without it.
    """

    model: str
    params: int
    gmacs: float
    dataset: str
    scale: float
    rule: str
    border: int
    lr: str
    ensemble: bool
    device: str
    images: tuple[ImageScore, ...]
    left_out: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The set's name, and how much of it was scored if that is not all."""
        if not self.left_out:
            return self.dataset
        scored = len(self.images)
        return f"{self.dataset} ({scored} of {scored + len(self.left_out)} images)"

    @property
    def psnr_y(self) -> float:
        """Mean over the images, in dB."""
        return sum(image.psnr_y for image in self.images) / len(self.images)

    @property
    def ssim_y(self) -> float:
        """Mean over the images."""
        return sum(image.ssim_y for image in self.images) / len(self.images)

    @property
    def seconds(self) -> float:
        """Mean seconds per image."""
        return sum(image.seconds for image in self.images) / len(self.images)


def to_table(results: Sequence[Result]) -> Table:
    """A table of means for the terminal."""
    # models have long names, and a terminal 80 columns
    table = Table(title=_title(results), box=SIMPLE_HEAD, show_edge=False, padding=0)
    for column in _TEXT_COLUMNS:
        table.add_column(column, overflow="fold")
    for column in _NUMBER_COLUMNS:
        heading = column.removesuffix("-Y").replace(" ", "\n").replace("/", "/\n")
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row, result in zip(_rows(results), results, strict=True):
        group = (result.dataset, result.scale)
        if previous not in (None, group):
            table.add_section()
        table.add_row(*row)
        previous = group
    return table


def _title(results: Sequence[Result]) -> str:
    return f"PSNR-Y (dB) by the rule {results[0].rule}, SSIM-Y, means over the images"


def _rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One line of text cells per result, for the terminal and for Markdown."""
    bicubic = {(r.dataset, r.scale): r.psnr_y for r in results if r.model == BICUBIC}
    rows: list[tuple[str, ...]] = []
    for r in results:
        gain = r.psnr_y - bicubic.get((r.dataset, r.scale), math.nan)
        rows.append(
            (
                r.title,
                f"x{r.scale:g}",
                r.model + (" (ensemble)" if r.ensemble else ""),
                "" if r.model == BICUBIC else f"{r.params:,}",
                "" if r.model == BICUBIC else f"{r.gmacs:.2f}",
                f"{r.psnr_y:.2f}",
                "" if r.model == BICUBIC or math.isnan(gain) else f"{gain:+.2f}",
                f"{r.ssim_y:.4f}",
                f"{r.seconds:.2f}",
            )
        )
    return rows


def to_markdown(results: Sequence[Result]) -> str:
    """A Markdown table of means under its title."""
    lines = [
        _title(results),
        "",
        "| " + " | ".join((*_TEXT_COLUMNS, *_NUMBER_COLUMNS)) + " |",
        "|---" * len(_TEXT_COLUMNS) + "|--:" * len(_NUMBER_COLUMNS) + "|",
        *("| " + " | ".join(row) + " |" for row in _rows(results)),
    ]
    return "\n".join(lines) + "\n"


def to_json(results: Sequence[Result]) -> str:
    """A JSON list: every field of each result, its means, and the score of each image.

    The PSNR of equal images is infinite, which JSON has no number for: null.
    """

    def score(item: Result | ImageScore) -> dict[str, float | None]:
        values = {key: getattr(item, key) for key in ("psnr_y", "ssim_y", "seconds")}
        return {key: value if math.isfinite(value) else None for key, value in values.items()}

    records = [
        {**asdict(r), **score(r), "images": [{"name": i.name, **score(i)} for i in r.images]}
        for r in results
    ]
    return json.dumps(records, indent=1, allow_nan=False) + "\n"


def to_csv(results: Sequence[Result]) -> str:
    """One line per image, with full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_CSV_COLUMNS, "image", "psnr_y", "ssim_y", "seconds"))
    for r in results:
        model = (r.dataset, f"{r.scale:g}", r.model, r.params, r.gmacs, r.ensemble, r.rule)
        for i in r.images:
            writer.writerow((*model, i.name, i.psnr_y, i.ssim_y, i.seconds))
    return text.getvalue()


_KEPT = ("model", "params", "gmacs", "dataset", "scale", "rule", "lr", "psnr_y", "ssim_y")


def keep(results: Sequence[Result], weights: str | Path) -> Path:
    """Write the means of a model's results, and bicubic's, beside its file: NAME.scores.json.

    The file names the weights that were measured by their digest, and no folder of the machine.
    Raises EvaluationError for means over a part of a set.
    """
    for result in results:
        if result.left_out:
            raise EvaluationError(f"{result.title}: {result.left_out[0]}")
    file = _beside(weights)
    rows = [{key: getattr(result, key) for key in _KEPT} for result in results]
    content = {"weights_sha256": digest(weights), "results": rows}
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file


def kept(weights: str | Path) -> list[dict[str, Any]]:
    """The means beside a model's file, one row per set, scale and model.

    Empty if it was never scored, or if the scores are of weights other than the file's.
    """
    file = _beside(weights)
    if not file.is_file():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["results"] if content["weights_sha256"] == digest(weights) else []


def digest(file: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _beside(weights: str | Path) -> Path:
    return Path(weights).with_suffix(".scores.json")


def rank(dataset: str) -> tuple[int, str]:
    """Sorts sets as papers do: Set5, Set14, B100."""
    return int("".join(filter(str.isdigit, dataset)) or 0), dataset


WRITERS = {".json": to_json, ".md": to_markdown, ".csv": to_csv}


def output_files(output: str | Path | None) -> list[Path]:
    """The files to write; their folder is made now, so that a long run does not end in an error."""
    if output is None:
        return []
    path = Path(output)
    if path.suffix and path.suffix not in WRITERS and not path.is_dir():
        raise EvaluationError(
            f"output is {path}; give a file ending in .json, .md or .csv, or a folder for all three"
        )
    single = path.suffix in WRITERS and not path.is_dir()
    folder = path.parent if single else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"output folder {folder} cannot be made: {error.strerror}") from error
    return [path] if single else [path / f"evaluation{suffix}" for suffix in WRITERS]
