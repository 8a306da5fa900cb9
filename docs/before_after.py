"""Draws docs/before_after.jpg: crops of the example photo, bicubic beside the shipped x4 model.

python docs/before_after.py
"""

from pathlib import Path

import numpy as np
import pyvips

from c2d_models import upscale
from c2d_models.images.resize import imresize
from c2d_models.images.sets import read_rgb

ROOT = Path(__file__).resolve().parent.parent
CROPS = [(100, 390, 200, 200), (180, 270, 200, 200)]  # top, left, height, width in the x4 picture
GAP = 6


def main() -> None:
    lr = read_rgb(ROOT / "examples" / "photo.png")
    bicubic = imresize(lr, 4).permute(1, 2, 0).numpy()
    ours = upscale(lr.permute(1, 2, 0).numpy(), scale=4)
    rows = []
    for top, left, height, width in CROPS:
        pair = [picture[top : top + height, left : left + width] for picture in (bicubic, ours)]
        rows.append(
            np.concatenate([pair[0], np.full((height, GAP, 3), 255, np.uint8), pair[1]], axis=1)
        )
    gap = np.full((rows[0].shape[0], 3 * GAP, 3), 255, np.uint8)
    drawing = np.concatenate([rows[0], gap, rows[1]], axis=1)
    drawing = drawing.repeat(2, axis=0).repeat(2, axis=1)  # pixels large enough to judge
    pyvips.Image.new_from_array(drawing).write_to_file(
        str(ROOT / "docs" / "before_after.jpg"), Q=90
    )


if __name__ == "__main__":
    main()
