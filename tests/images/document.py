"""docs/formats.md, its table measured: `python -m tests.images.document`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from c2d_models.images.image_file import read, write
from tests.images.fields import FIELDS, KINDS, Field

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
_TITLES = {"png": "PNG", "jpg": "JPEG", "webp": "WebP", "tiff": "TIFF"}


def outcome(field: Field, source: str, target: str, folder: Path) -> str | None:
    """The field's value in a `target` that was made of a `source` with it."""
    y, x = np.mgrid[:24, :32]
    picture = Image.fromarray(np.stack([x * 8, y * 10, x + y], axis=-1).astype(np.uint8))
    before, after = folder / f"before.{source}", folder / f"after.{target}"
    before.write_bytes(field.put(source, picture))
    write(after, read(before))
    return field.found(after)


def page() -> str:
    """The page's text: its table is measured, the rest stays."""
    prose = PAGE.read_text(encoding="utf-8").split("| | from |")[0]
    lines = [f"| | from | {' | '.join(_TITLES[kind] for kind in KINDS)} |"]
    lines.append("|---" * (2 + len(KINDS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for field in FIELDS:
            for source in field.kinds:
                cells = [outcome(field, source, target, Path(folder)) or "" for target in KINDS]
                name = field.name if source == field.kinds[0] else ""
                lines.append(f"| {name} | {_TITLES[source]} | {' | '.join(cells)} |")
    return prose + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
