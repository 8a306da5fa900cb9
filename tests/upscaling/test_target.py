"""Sizes that are asked for: what comes of each picture, by which passes, and what is refused."""

import pytest

from c2d_models.errors import UpscaleError
from c2d_models.upscaling.target import Target, common_factor, parse_size, passes


@pytest.mark.parametrize(
    ("target", "size", "expected"),
    [
        pytest.param(Target(), (5, 7), (20, 28), id="4 by default"),
        pytest.param(Target(2.5), (5, 7), (13, 18), id="scale, each axis rounded"),
        pytest.param(Target(16), (5, 7), (80, 112), id="16"),
        pytest.param(Target(width=3840), (1080, 1920), (2160, 3840), id="width"),
        pytest.param(Target(height=2160), (1080, 1920), (2160, 3840), id="height"),
        pytest.param(Target(width=100), (33, 77), (43, 100), id="width, the other rounded"),
        pytest.param(Target(width=100, height=43), (33, 77), (43, 100), id="size, same aspect"),
        pytest.param(Target(width=200, height=43, stretch=True), (33, 77), (43, 200), id="stretch"),
        pytest.param(Target(fit=(2160, 3840)), (1000, 1000), (2160, 2160), id="fit, by height"),
        pytest.param(Target(fit=(2160, 3840)), (500, 1500), (1280, 3840), id="fit, by width"),
        pytest.param(Target(long_side=300), (100, 200), (150, 300), id="long side, landscape"),
        pytest.param(Target(long_side=300), (200, 100), (300, 150), id="long side, portrait"),
        pytest.param(Target(long_side=90), (90, 90), (90, 90), id="as it is"),
        pytest.param(Target(width=16, height=16), (1, 16), (16, 16), id="one row has no aspect"),
    ],
)
def test_size(target, size, expected):
    assert target.size(*size) == expected


@pytest.mark.parametrize(
    ("target", "size", "sentence"),
    [
        (Target(width=200, height=43), (33, 77), "would distort an image of 77x33: use --fit"),
        (Target(width=50), (40, 60), "height 33 from 40"),
        (Target(width=1700), (100, 100), "height 1700 from 100.* here to 100 to 1600"),
        (Target(long_side=10), (20, 20), "height 10 from 20"),
        (Target(fit=(10, 500)), (20, 20), "height 10 from 20"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_out_of_reach(target, size, sentence):
    with pytest.raises(UpscaleError, match=sentence):
        target.size(*size)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scale": 16.1}, "scale is 16.1; it must be from 1 to 16"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2, "long_side": 90}, "scale and long side are both given"),
        ({"width": 9, "fit": (9, 9)}, "size and fit are both given"),
        ({"width": 0, "height": 4}, "size asks for 0 pixels"),
        ({"fit": (4, 0)}, "fit asks for 0 pixels"),
    ],
    ids=str,
)
def test_targets_that_cannot_be(values, sentence):
    with pytest.raises(UpscaleError, match=sentence):
        Target(**values)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("2",), "scale is '2'; give a number"),
        ((True,), "scale is True"),
        ((None, 48), r"size is 48; give two whole numbers, \(height, width\)"),
        ((None, (4, 4, 4)), "give two whole numbers"),
        ((None, (4.0, 4)), "give two whole numbers"),
        ((None, "44"), "give two whole numbers"),
        ((2, (8, 8)), "scale and size are both given; choose one"),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind(arguments, sentence):
    with pytest.raises(UpscaleError, match=sentence):
        Target.of(*arguments)


@pytest.mark.parametrize(
    ("size", "wanted", "step", "expected"),
    [
        ((10, 10), (40, 40), 4, [(40, 40)]),
        ((10, 10), (10, 10), 4, [(10, 10)]),
        ((10, 10), (41, 41), 4, [(40, 40), (41, 41)]),
        ((10, 10), (160, 160), 4, [(40, 40), (160, 160)]),
        ((10, 10), (80, 80), 2, [(20, 20), (40, 40), (80, 80)]),
        ((10, 10), (20, 90), 4, [(20, 40), (20, 90)]),
    ],
)
def test_passes(size, wanted, step, expected):
    assert passes(size, wanted, step) == expected


@pytest.mark.parametrize(
    ("size", "wanted", "factor"),
    [((3, 4), (9, 12), 3), ((3, 4), (9, 13), None), ((3, 4), (10, 12), None), ((2, 2), (2, 2), 1)],
)
def test_common_factor(size, wanted, factor):
    assert common_factor(size, wanted) == factor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1920x1080", (1920, 1080)),
        ("1920X", (1920, None)),
        ("x1080", (None, 1080)),
        ("12 × 8", (12, 8)),
    ],
)
def test_parse_size(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "x", "20", "20x-4", "axb", "2.5x3", "²x3"])
def test_what_is_no_size(text):
    with pytest.raises(UpscaleError, match="write width x height, such as 1920x1080"):
        parse_size(text)
