"""Results that the authors of the networks published: the light models, trained on DIV2K."""

from __future__ import annotations

from typing import NamedTuple


class Figures(NamedTuple):
    """At one scale; GMACs at 1280x720 output by fvcore, PSNR-Y in dB."""

    parameters: int
    gmacs: float
    set5: float
    set14: float
    b100: float
    urban100: float
    manga109: float


# SwinIR 2108.10257, SRFormer 2303.09735, MambaIRv2 2411.15269, HiT-SR 2407.05878.
PUBLISHED: dict[str, dict[int, Figures]] = {
    "swinir_l": {
        2: Figures(910_152, 244.4, 38.14, 33.86, 32.31, 32.76, 39.12),
        3: Figures(918_267, 110.8, 34.62, 30.54, 29.20, 28.66, 33.98),
        4: Figures(929_628, 63.6, 32.44, 28.77, 27.69, 26.47, 30.92),
    },
    "srformer_l": {
        2: Figures(853_272, 236.2, 38.23, 33.94, 32.36, 32.91, 39.28),
        3: Figures(861_387, 104.8, 34.67, 30.57, 29.26, 28.81, 34.19),
        4: Figures(872_748, 62.8, 32.51, 28.82, 27.73, 26.67, 31.17),
    },
    "mambairv2_l": {
        2: Figures(774_092, 286.3, 38.26, 34.09, 32.36, 33.26, 39.35),
        3: Figures(780_587, 126.7, 34.71, 30.68, 29.26, 29.01, 34.41),
        4: Figures(789_680, 75.6, 32.51, 28.84, 27.75, 26.82, 31.24),
    },
    "hit_sir": {
        2: Figures(772_064, 209.9, 38.22, 33.91, 32.35, 33.02, 39.38),
        3: Figures(780_179, 94.2, 34.72, 30.62, 29.27, 28.93, 34.40),
        4: Figures(791_540, 53.8, 32.51, 28.84, 27.73, 26.71, 31.23),
    },
    "hit_srf": {
        2: Figures(846_944, 226.5, 38.26, 34.01, 32.37, 33.13, 39.47),
        3: Figures(855_059, 101.6, 34.75, 30.61, 29.29, 28.99, 34.53),
        4: Figures(866_420, 58.0, 32.55, 28.87, 27.75, 26.80, 31.26),
    },
}
