"""Broken pictures, read and enlarged: `python -m tests.images.broken_pictures COUNT FOLDER`.

In a process of its own, which a crash may end: the file that it was at stays in FOLDER. What it
met is printed as JSON.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pyvips
from PIL import Image, features

from c2d_models.errors import C2DError
from c2d_models.images import image_file
from c2d_models.upscaling.batch import upscale_file
from c2d_models.upscaling.jobs import Job
from c2d_models.upscaling.target import Target
from c2d_models.upscaling.upscaler import Upscaler
from tests.images.samples import noise
from tests.mutations import mutate
from tests.upscaling.local_network import local

PICTURES = Path(__file__).parents[1] / "data" / "pictures"
SMALL = 16384  # pixels: larger ones are read, but not enlarged


def whole_files() -> list[tuple[str, bytes]]:
    """(ending, bytes) of one file of each kind and layout; those that are refused are seeds too."""
    files = [path for path in sorted(PICTURES.rglob("*")) if path.is_file()]
    return [(path.suffix, path.read_bytes()) for path in files] + list(made_files())


def made_files() -> Iterator[tuple[str, bytes]]:
    """Layouts that are quickly made."""
    samples = noise(24, 40, 4)
    colour = Image.fromarray(samples[..., :3])
    for mode, ending, options in (
        ("RGB", ".jp2", {}),
        ("CMYK", ".jpg", {}),
        ("L", ".jpg", {"progressive": True}),
        ("P", ".png", {"transparency": 3}),
        ("1", ".png", {}),
        ("I;16", ".png", {}),
        ("RGBA", ".png", {}),
        ("P", ".gif", {"save_all": True, "append_images": [colour.quantize(8)]}),
        ("RGBA", ".webp", {"lossless": True}),
        ("RGB", ".webp", {"save_all": True, "append_images": [colour.rotate(180)]}),
        ("P", ".bmp", {}),
        ("RGB", ".avif", {}),
    ):
        if ending == ".avif" and not features.check("avif"):
            continue
        picture = Image.fromarray(samples) if mode == "RGBA" else colour
        buffer = io.BytesIO()
        picture = picture.convert("L") if mode == "I;16" else picture
        kind = Image.registered_extensions()[ending]
        picture.convert(mode).save(buffer, kind, **options)
        yield ending, buffer.getvalue()
    vips = pyvips.Image.new_from_array(samples)
    for options in (
        {"compression": "packbits"},
        {"compression": "deflate", "predictor": "horizontal", "tile": True},
        {"compression": "jpeg"},
        {"compression": "lzw", "bigtiff": True},
        {"compression": "none", "pyramid": True, "tile": True, "tile_width": 16, "tile_height": 16},
        {"compression": "none", "bitdepth": 1},
    ):
        image = vips[:3] if "jpeg" in options.values() else vips
        image = image.colourspace("b-w")[0] if "bitdepth" in options else image
        yield ".tif", image.tiffsave_buffer(**options)


def sealed(png: bytes) -> bytes:
    """The same with its chunks' checksums made right, so that what is broken is reached."""
    out, at = png[:8], 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        out += png[at:end] + crc32(png[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return out


def main(count: int, folder: Path) -> None:
    """Break `count` files, the same ones each time."""
    seeds = whole_files()
    rng = np.random.default_rng(4)
    upscaler = Upscaler.load(Target(2), model=local(2), device="cpu")
    outcomes: Counter[str] = Counter()
    bad: dict[str, str] = {}
    slowest, slow_file = 0.0, ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        suffix, data = seeds[number % len(seeds)]
        path = folder / f"current{suffix}"
        broken = mutate(data, rng)
        path.write_bytes(sealed(broken) if suffix == ".png" and rng.random() < 0.7 else broken)
        started = time.process_time()
        try:
            image = image_file.read(path)
            outcomes["read"] += 1
            if image.pixels[..., 0].size <= SMALL:
                target = folder / f"out.{('png', 'jpg', 'webp', 'tiff')[number % 4]}"
                upscale_file(Job(path, target), upscaler)
                image_file.read(target)
                outcomes["enlarged"] += 1
        except C2DError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or path.name not in str(error):
                bad[f"{number}{suffix}"] = str(error)
        except Exception as error:
            bad[f"{number}{suffix}"] = repr(error)
        if f"{number}{suffix}" in bad:
            path.rename(folder / f"{number}{suffix}")
        seconds = time.process_time() - started
        if seconds > slowest:
            slowest, slow_file = seconds, f"{number}{suffix}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {"files": count, **outcomes, "bad": bad, "slowest_s": slowest, "slow_file": slow_file}
    print(json.dumps(report | {"grown_mib": (peak - before) // 1024}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
