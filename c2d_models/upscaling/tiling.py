"""Networks over images of any size, in bounded memory: tiles in, strips out.

The body sees overlapping square tiles of the LR image; their features are blended there, and
leave in bands of finished rows, top to bottom. Where asked, a mirrored margin around the image goes
through the body too: its convolutions pad with zeros, which dims the rim of a network that has seen
few borders in training. A discrete up-sampler turns each band into pixels at
once. A continuous one attends over the whole picture: the bands are kept (on disk if many),
its attention's matrices are summed over all strips first, and only then are the strips decoded: the
picture is the one that the network makes of the whole image, whatever the strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from c2d_kernels import Region

from ..devices import is_out_of_memory
from ..errors import OutOfMemoryError, UpscaleError
from ..networks.maps import mirror_index
from ..networks.network import Network
from ..networks.upsamplers import Upsampler
from .storage import allocate

Source = Callable[[int, int, int, int], Tensor]
"""(y0, y1, x0, x1) -> that part of the LR image, (1, 3, h, w) float32 in [0, 1], on the device."""
Sink = Callable[[int, Tensor], None]
"""Takes (first row, (3, h, W_out)) of the output; rows may come again after memory ran out."""

ENCODE_BYTES = 150
"""Peak bytes of a body per LR pixel and channel, float32: measured 126 to 154 (SwinIR-L, HiET)."""
DECODE_BYTES = 68
"""Peak bytes of a continuous decoder per query and channel: 64 to 68 measured, HIIF-L."""
_DECODE_WORK = 0.1
"""Work of one continuous query in one pass, relative to one LR pixel through the body."""


@dataclass(frozen=True)
class Plan:
    """How an image is cut.

    Attributes:
        tile: side of the square tiles in LR pixels, a multiple of the net's `tile_multiple`; a side
            of the image no longer than this is not cut.
        overlap: LR pixels that neighbouring tiles share, a multiple of it too.
        strip_bytes: memory for the decoding of one strip.
    """

    tile: int
    overlap: int
    strip_bytes: int

    @classmethod
    def fit(
        cls, net: Network, height: int, width: int, budget: int, tile: int | None = None
    ) -> Plan:
        """The largest tiles that `budget` bytes allow; `tile` asks for a side (0: do not cut).

        Raises:
            UpscaleError: the asked tile is too small for the network's overlap.
        """
        multiple = net.tile_multiple
        overlap = _round_up(net.min_overlap, multiple)
        smallest = 2 * overlap
        strip = max(budget // 4, 2**20)
        if tile is None:
            side = int((budget / (ENCODE_BYTES * net.channels)) ** 0.5) // multiple * multiple
            side = max(side, smallest)
            # One tile of the image's own shape needs no seam, and no more memory than a square one.
            if height * width <= side * side:
                side = max(side, _round_up(max(height, width), multiple))
            return cls(side, overlap, strip)
        if tile == 0:
            return cls(_round_up(max(height, width), multiple), overlap, strip)
        if tile < smallest:
            raise UpscaleError(
                f"tile is {tile}; {net.name or 'this network'} needs at least {smallest} pixels, "
                "or 0 for no tiles, or auto."
            )
        return cls(_round_up(tile, multiple), overlap, strip)

    def halved(self, height: int, width: int, multiple: int) -> Plan | None:
        """The plan to go on with when memory ran out, or None if tiles cannot be smaller."""
        side = min(self.tile, _round_up(max(height, width), multiple))
        smaller = max(side // 2 // multiple * multiple, 2 * self.overlap)
        if smaller >= side:
            return None
        return replace(self, tile=smaller, strip_bytes=self.strip_bytes // 2)


def spans(length: int, plan: Plan) -> list[tuple[int, int]]:
    """(start, stop) of the tiles along one axis.

    Starts are multiples of tile - overlap; each pair of neighbours shares `overlap` pixels, and no
    pixel belongs to more than two tiles, as tile >= 2 * overlap.
    """
    starts = [0]
    while starts[-1] + plan.tile < length:
        starts.append(starts[-1] + plan.tile - plan.overlap)
    return [(start, min(start + plan.tile, length)) for start in starts]


def ramps(pieces: list[tuple[int, int]]) -> list[Tensor]:
    """Blending weights of the tiles along one axis; they add up to 1 at every pixel.

    Linear over the middle half of an overlap. The outer quarters belong to one tile alone: a tile's
    outermost pixels, which saw its cut edge, do not count.
    """
    weights = [torch.ones(stop - start) for start, stop in pieces]
    for i in range(1, len(pieces)):
        shared = pieces[i - 1][1] - pieces[i][0]
        guard = shared // 4
        rise = (torch.arange(shared) + 0.5 - guard) / (shared - 2 * guard)
        rise = rise.clamp(0, 1)
        weights[i][:shared] *= rise
        weights[i - 1][-shared:] *= 1 - rise
    return weights


def run(
    net: Network,
    source: Source,
    sink: Sink,
    size: tuple[int, int],
    out_size: tuple[int, int],
    plan: Plan,
    *,
    margin: int = 0,
    folder: Path | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Plan:
    """Send the output of `net` to `sink`, starting over with smaller tiles when memory runs out.

    Arguments:
        net: in evaluation mode, on the device that `source` delivers to.
        source: gives the LR image of `size` (H, W).
        sink: receives the output of `out_size`.
        plan: of `Plan.fit`, for the image with its margin.
        margin: LR pixels of mirror image that the body sees on each side.
        folder: where features go that do not fit in memory; by default the temporary folder.
        progress: told the fraction of the work that is done, in [0, 1]; falls back on a new start.

    Returns:
        The plan that worked.

    Raises:
        OutOfMemoryError: the smallest tile is too large.
    """
    if net.upsample.on_padded_map and not margin:
        source, sink, size, out_size = _padded(net, source, sink, size, out_size)
    while True:
        try:
            with torch.inference_mode():
                _attempt(net, source, sink, size, out_size, plan, margin, folder, progress)
            return plan
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = _widened(size, margin)
            smaller = plan.halved(height, width, net.tile_multiple)
            if smaller is None:
                raise OutOfMemoryError(
                    f"memory ran out with tiles of {plan.tile} pixels, this network's smallest: "
                    "close other programs, or choose another device or a smaller network."
                ) from None
            plan = smaller
        # Outside the handler: the traceback holds the tensors that filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _padded(
    net: Network,
    source: Source,
    sink: Sink,
    size: tuple[int, int],
    out_size: tuple[int, int],
) -> tuple[Source, Sink, tuple[int, int], tuple[int, int]]:
    """The image padded as the network pads it, and a sink that drops what is too much.

    For an up-sampler of several convolutions, which sees the padding as its authors' does.
    """
    assert net.scale is not None
    scale, multiple, (height, width) = net.scale, net.pad_multiple, size
    larger = _round_up(height, multiple), _round_up(width, multiple)
    indices = [net.pad_index(a, b) for a, b in zip(size, larger, strict=True)]

    def wider(y0: int, y1: int, x0: int, x1: int) -> Tensor:
        if y1 <= height and x1 <= width:
            return source(y0, y1, x0, x1)
        return _gathered(source, indices[0][y0:y1], indices[1][x0:x1])

    def cropped(top: int, rows: Tensor) -> None:
        if top < out_size[0]:
            sink(top, rows[:, : out_size[0] - top, : out_size[1]])

    return wider, cropped, larger, (scale * larger[0], scale * larger[1])


def encode_bands(
    net: Network,
    source: Source,
    size: tuple[int, int],
    plan: Plan,
    margin: int,
    done: Callable[[float], None],
) -> Iterator[tuple[int, Tensor]]:
    """(first row, features (h, W, C)) of consecutive bands that cover the LR image, top to bottom.

    `done` is told the pixels of each tile. Blending is in float32 (float64 for a float64 net).
    """
    for start, band in _wide_bands(net, source, size, plan, margin, done):
        first, last = max(margin - start, 0), min(margin + size[0] - start, len(band))
        if first < last:
            yield start + first - margin, band[first:last, margin : margin + size[1]]


def _wide_bands(
    net: Network,
    source: Source,
    size: tuple[int, int],
    plan: Plan,
    margin: int,
    done: Callable[[float], None],
) -> Iterator[tuple[int, Tensor]]:
    """The bands of the image with its margin; rows and columns count from the margin's corner."""
    height, width = _widened(size, margin)
    rows, columns = spans(height, plan), spans(width, plan)
    row_weights, column_weights = ramps(rows), ramps(columns)
    carried: Tensor | None = None
    for i, (y0, y1) in enumerate(rows):
        band: Tensor | None = None
        for j, (x0, x1) in enumerate(columns):
            tile = _mirrored(source, size, (y0 - margin, y1 - margin), (x0 - margin, x1 - margin))
            features = net.encode(tile)[0]
            done((y1 - y0) * (x1 - x0))
            if len(rows) == len(columns) == 1:
                yield 0, features
                return
            blended = torch.promote_types(features.dtype, torch.float32)
            if band is None:
                band = features.new_zeros((y1 - y0, width, features.shape[-1]), dtype=blended)
            weight = row_weights[i][:, None] * column_weights[j]
            band[:, x0:x1] += features * weight.to(features.device, blended)[..., None]
            kept = features.dtype
            del features
        assert band is not None  # as soon as there is one column
        if carried is not None:
            band[: len(carried)] += carried
        finished = (rows[i + 1][0] if i + 1 < len(rows) else height) - y0
        carried = band[finished:].clone()
        yield y0, band[:finished].to(kept)


def _mirrored(
    source: Source, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> Tensor:
    """`source` of a part that may reach outside the image, where its mirror image continues it."""
    if min(rows[0], columns[0]) >= 0 and rows[1] <= size[0] and columns[1] <= size[1]:
        return source(*rows, *columns)
    y, x = (
        mirror_index(side, stop - start, start=start)
        for side, (start, stop) in zip(size, (rows, columns), strict=True)
    )
    return _gathered(source, y, x)


def _gathered(source: Source, rows: Tensor, columns: Tensor) -> Tensor:
    """These rows and columns of the image, in any order."""
    (y0, y1), (x0, x1) = ((int(at.min()), int(at.max()) + 1) for at in (rows, columns))
    part = source(y0, y1, x0, x1)
    y, x = ((at - low).to(part.device) for at, low in ((rows, y0), (columns, x0)))
    return part.index_select(2, y).index_select(3, x)


def _attempt(
    net: Network,
    source: Source,
    sink: Sink,
    size: tuple[int, int],
    out_size: tuple[int, int],
    plan: Plan,
    margin: int,
    folder: Path | None,
    progress: Callable[[float], None],
) -> None:
    """One try at the whole image."""
    rows, columns = (spans(side, plan) for side in _widened(size, margin))
    tiles = sum((b - a) * (d - c) for a, b in rows for c, d in columns)
    queries = out_size[0] * out_size[1] if net.scale is None else 0
    passes = 1 + net.query_attentions
    total = tiles + _DECODE_WORK * queries * passes
    finished = 0.0

    def done(work: float) -> None:
        nonlocal finished
        finished += work
        progress(min(finished / total, 1.0))

    bands = encode_bands(net, source, size, plan, margin, done)
    if net.scale is None:
        _decode_continuous(net, source, sink, size, out_size, plan, folder, bands, done)
    else:
        _decode_discrete(net, source, sink, size, plan, bands)


def _decode_discrete(
    net: Network,
    source: Source,
    sink: Sink,
    size: tuple[int, int],
    plan: Plan,
    bands: Iterator[tuple[int, Tensor]],
) -> None:
    """Pixels of each band as soon as the rows that it reads below itself are there."""
    height, width = size
    margin, scale = net.decode_margin, net.scale
    assert scale is not None
    assert isinstance(net.upsample, Upsampler)
    step = max(plan.strip_bytes // (width * scale * scale * net.upsample.decode_bytes), 1)
    held: Tensor | None = None
    top = decoded = 0  # features from row `top` on; rows before `decoded` are out
    for start, band in bands:
        held = band if held is None else torch.cat([held, band])
        end = start + len(band)
        ready = end if end == height else max(end - margin, decoded)
        while decoded < ready:
            stop = min(decoded + step, ready)
            low, high = max(decoded - margin, 0), min(stop + margin, height)
            pixels = net.decode(held[None, low - top : high - top], source(low, high, 0, width))
            sink(decoded * scale, pixels[0, :, (decoded - low) * scale : (stop - low) * scale])
            decoded = stop
        keep = max(decoded - margin, 0)
        held, top = held[keep - top :].clone(), keep


def _decode_continuous(
    net: Network,
    source: Source,
    sink: Sink,
    size: tuple[int, int],
    out_size: tuple[int, int],
    plan: Plan,
    folder: Path | None,
    bands: Iterator[tuple[int, Tensor]],
    done: Callable[[float], None],
) -> None:
    """Keep all bands, sum each attention's matrices over the strips, decode strips with them."""
    (height, width), (out_height, out_width) = size, out_size
    features: Tensor | None = None
    for start, band in bands:
        if len(band) == height:
            features = band
            break
        if features is None:
            shape = (height, width, band.shape[-1])
            features = allocate(shape, band.dtype, folder, band.device)
        features[start : start + len(band)] = band
    assert features is not None  # there is a band
    device = source(0, 1, 0, 1).device
    bytes_per_row = DECODE_BYTES * features.shape[-1] * out_width
    step = max(plan.strip_bytes // bytes_per_row, 1)
    strips = [(a, min(a + step, out_height)) for a in range(0, out_height, step)]

    def crop(strip: tuple[int, int]) -> tuple[Tensor, Region, tuple[int, int]]:
        # The neighbours floor(u) and floor(u) + 1 of the first and last row, one to spare.
        low, high = (int(((i + 0.5) * height) // out_height) for i in (strip[0], strip[1] - 1))
        low, high = max(low - 2, 0), min(high + 3, height)
        region = Region(strip, (0, out_width), (low, 0), size)
        return features[None, low:high].to(device), region, (low, high)

    moments: list[Tensor] = []
    for _ in range(net.query_attentions):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for strip in strips:
            part, region, _ = crop(strip)
            moment = net.decode_moments(part, size=out_size, region=region, moments=moments)
            total = total + moment.double()
            done(_DECODE_WORK * (strip[1] - strip[0]) * out_width)
        exact = torch.promote_types(features.dtype, torch.float32)
        moments.append((total / (out_height * out_width)).to(exact))
    for strip in strips:
        part, region, (low, high) = crop(strip)
        image = source(low, high, 0, width)
        pixels = net.decode(part, image, size=out_size, region=region, moments=moments)
        sink(strip[0], pixels[0])
        done(_DECODE_WORK * (strip[1] - strip[0]) * out_width)


def _widened(size: tuple[int, int], margin: int) -> tuple[int, int]:
    return size[0] + 2 * margin, size[1] + 2 * margin


def _round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple
