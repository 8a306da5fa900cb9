"""Colours as viewers show them: what is neither grey nor RGB becomes that, as integers."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np
import pyvips

from ..errors import ImageError
from .loading import Decoded
from .metadata import png_chunks

_SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)  # PNG's cHRM for sRGB
_SRGB_GAMMA = 45455
_SRGB, _DISPLAY_P3 = b"\1\x0d", b"\x0c\x0d"  # cICP: primaries and transfer (ITU-T H.273)
_CLOSE = 500  # in 1/100000: chromaticities this close look the same


def to_samples(name: str, decoded: Decoded) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 1 or 3) uint8 or uint16 and alpha (H, W) or None, as they lie in the file.

    CMYK becomes sRGB through its embedded profile (a generic one where there is none) with black
    point compensation, Lab becomes sRGB; floats in [0, 1] become uint16.

    Raises:
        ImageError: samples or channels of a kind that is not read.
        pyvips.Error: the pixels are damaged.
    """
    image = decoded.image
    colours = image[: decoded.colours] if image.bands > decoded.colours else image
    planes = [colours if decoded.alpha is None else colours.bandjoin(image[decoded.alpha])]
    if image.interpretation in ("cmyk", "lab", "labs", "labq") or decoded.colours == 4:
        converted = _to_srgb(name, image, colours)
        planes = [converted]
        if decoded.alpha is not None:
            alpha = image[decoded.alpha]
            deep = converted.format == "ushort"
            if deep != (alpha.format == "ushort"):
                alpha = (alpha * (257 if deep else 1 / 257)).cast(converted.format)
            planes = [converted.bandjoin(alpha)]
    (joined,) = planes
    samples = joined.numpy().reshape(joined.height, joined.width, joined.bands)
    samples = _as_integers(name, samples)
    channels = joined.bands - (decoded.alpha is not None)
    if channels not in (1, 3):
        raise ImageError(
            f"{name} has {channels} channels; grey, RGB and CMYK, each with or without alpha, are "
            "read."
        )
    pixels = np.ascontiguousarray(samples[..., :channels])
    if decoded.alpha is None:
        return pixels, None
    return pixels, np.ascontiguousarray(samples[..., channels])


def cmyk_to_srgb(samples: np.ndarray, profile: bytes | None = None) -> np.ndarray:
    """(H, W, 4) uint8 CMYK, 255 all ink, as (H, W, 3) sRGB, by an ICC profile or a generic one."""
    image = pyvips.Image.new_from_array(np.ascontiguousarray(samples))
    image = image.copy(interpretation="cmyk")
    if profile is not None:
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    converted = _by_profile(image)
    return converted.numpy().reshape(samples.shape[0], samples.shape[1], 3)


def png_to_srgb(file: BinaryIO, pixels: np.ndarray) -> np.ndarray | None:
    """The pixels in sRGB if the PNG's gAMA and cHRM say that they are something else, else None.

    An ICC profile, an sRGB chunk or cICP stands above them, as in the PNG specification.
    """
    gamma, primaries = _SRGB_GAMMA, _SRGB_PRIMARIES
    for chunk, data in png_chunks(file):
        if chunk in (b"iCCP", b"sRGB", b"cICP"):
            return None
        if chunk == b"gAMA" and len(data) == 4:
            gamma = struct.unpack(">I", data)[0] or _SRGB_GAMMA
        elif chunk == b"cHRM" and len(data) == 32:
            primaries = struct.unpack(">8I", data)
        elif chunk == b"IDAT":
            break
    same_gamma = abs(gamma - _SRGB_GAMMA) <= _CLOSE
    same_primaries = all(
        abs(a - b) <= _CLOSE for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True)
    )
    if same_gamma and (same_primaries or pixels.shape[2] == 1):
        return None
    full = np.iinfo(pixels.dtype).max
    values = np.linspace(0, 1, full + 1)
    light = _srgb_light(values) if same_gamma else values ** (1e5 / gamma)
    if same_primaries or pixels.shape[2] == 1:
        return np.rint(_srgb_curve(light) * full).astype(pixels.dtype)[pixels]
    try:
        matrix = np.linalg.inv(_to_xyz(_SRGB_PRIMARIES)) @ _to_xyz(primaries)
    except np.linalg.LinAlgError:  # points that span no triangle
        return None
    out = np.empty_like(pixels)
    for top in range(0, len(pixels), 64):  # the floats of a few rows at a time
        linear = light[pixels[top : top + 64]] @ matrix.T
        out[top : top + 64] = np.rint(_srgb_curve(linear.clip(0, 1)) * full)
    return out


def is_usable(profile: bytes, channels: int) -> bool:
    """Whether an ICC profile is whole and of pictures with so many channels.

    libvips would take a profile of its own instead, without a word.
    """
    if profile[36:40] != b"acsp" or profile[16:20] != (b"GRAY" if channels == 1 else b"RGB "):
        return False
    count = int.from_bytes(profile[128:132], "big")
    if not 0 < count <= 100 or len(profile) < 132 + 12 * count:
        return False
    for at in range(132, 132 + 12 * count, 12):
        _, start, length = struct.unpack_from(">4sII", profile, at)
        if start + length > len(profile):
            return False
    pixel = pyvips.Image.black(1, 1, bands=channels)
    pixel = pixel.copy(interpretation="b-w" if channels == 1 else "srgb")
    pixel.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    try:
        pixel.icc_transform("srgb", embedded=True).numpy()
    except pyvips.Error:
        return False
    return True


def profile_of_cicp(cicp: bytes | None) -> bytes | None:
    """The ICC profile of a colour space that cICP names, of those that are known: Display P3."""
    if cicp is None or cicp[:2] != _DISPLAY_P3:
        return None
    return pyvips.Operation.call("profile_load", "p3")


def cicp_note(cicp: bytes | None) -> list[str]:
    """The note on a colour space that only PNG can name."""
    if cicp is None or cicp[:2] == _SRGB or profile_of_cicp(cicp) is not None:
        return []
    primaries, transfer = cicp[:2]
    return [f"its colours are cICP {primaries}/{transfer}, which is kept in PNG alone"]


def _to_srgb(name: str, image: pyvips.Image, colours: pyvips.Image) -> pyvips.Image:
    """CMYK or Lab, without alpha, as sRGB of 8 or 16 bits."""
    if image.interpretation in ("lab", "labs", "labq"):
        deep = image.format in ("short", "float") and image.interpretation == "labs"
        return colours.colourspace("rgb16" if deep else "srgb")
    if image.format not in ("uchar", "ushort"):
        raise ImageError(f"{name} holds CMYK of {image.format} samples; convert it to RGB first.")
    return _by_profile(colours)


def _by_profile(image: pyvips.Image) -> pyvips.Image:
    return image.icc_transform(
        "srgb",
        embedded=True,
        input_profile="cmyk",  # libvips' own, for files that embed none
        black_point_compensation=True,
        depth=16 if image.format == "ushort" else 8,
    )


def _as_integers(name: str, samples: np.ndarray) -> np.ndarray:
    if samples.dtype in (np.uint8, np.uint16):
        return samples
    if samples.dtype.kind == "f":
        low, high = float(samples.min()), float(samples.max())
        if low >= 0 and high <= 1:
            return np.rint(samples * 65535).astype(np.uint16)
        raise ImageError(
            f"{name} holds floats from {low:g} to {high:g}; scale them to 0 to 1, or convert it to "
            "integers of 8 or 16 bits."
        )
    raise ImageError(f"{name} holds {samples.dtype} samples; convert it to 8 or 16 bits first.")


def _srgb_curve(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB's values (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _srgb_light(values: np.ndarray) -> np.ndarray:
    """sRGB's values to linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _to_xyz(primaries: tuple[int, ...]) -> np.ndarray:
    """The matrix from linear RGB to XYZ of chromaticities (white, red, green, blue) times 1e5."""
    white, *rgb = (
        np.array([x / y, 1, (1e5 - x - y) / y])
        for x, y in zip(primaries[::2], np.maximum(primaries[1::2], 1), strict=True)
    )
    columns = np.stack(rgb, axis=1)
    return columns * np.linalg.solve(columns, white)
