"""The paper's experiment at a small budget: what two stages, and what each network, buy at x4.

    python docs/experiments.py train    # every arm, one after the other; goes on where it stopped
    python docs/experiments.py report   # scores them, writes docs/experiments.{md,json,png}

All arms see the same number of steps, of patches a step and the same photographs. Arms that start
from nothing get the whole schedule: warm-up, then a cosine over all their steps. Photographs that
training does not see draw the curves; the benchmark sets are scored once, at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from c2d_models.evaluation import run as evaluation
from c2d_models.images import sets
from c2d_models.networks import registry
from c2d_models.networks.complexity import gmacs, parameters
from c2d_models.pretrained import loading
from c2d_models.training import trainer as training
from c2d_models.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/experiments")
SCALE = 4
LR = 4e-4


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget.

    Attributes:
        title: what the table calls it.
        network, options: as in a training configuration.
        continuous: share of the steps spent on stage 1.
        lr: learning rate of the discrete steps.
        seeds: one run each.
        body: the arm whose stage 1 is taken rather than trained again.
    """

    title: str
    network: str = "hiet_swinir_tiny"
    options: dict[str, Any] = field(default_factory=dict)
    continuous: float = 0.0
    lr: float = LR
    seeds: tuple[int, ...] = (0,)
    body: str | None = None


ARMS = {
    "a": Arm("HiET-SwinIR, discrete only", seeds=(0, 1)),
    "b": Arm("HiET-SwinIR, continuous then discrete", continuous=0.7, lr=1e-4, seeds=(0, 1)),
    "b-fast": Arm("the same, stage 2 at lr 4e-4", continuous=0.7, lr=LR, seeds=(0, 1), body="b"),
    "c": Arm("HiT-SIR, discrete only", network="hit_sir_tiny"),
    "d": Arm("SwinIR-L, discrete only", network="swinir_l_tiny"),
    "e": Arm("HiET-SwinIR, correlation at the bottom", options={"bottom_mixer": "correlation"}),
}


def stages(name: str, seed: int, options: argparse.Namespace) -> Iterator[TrainConfig]:
    """The training configurations of one run of an arm, in order."""
    arm = ARMS[name]
    common = {
        "network": arm.network,
        "options": arm.options,
        "data": options.data,
        "batch": 4,
        "patch": 48,
        "queries": 48 * 48,
        "warmup": 100,
        "threads": options.threads,
        "seed": seed,
        "validate_every": 250,
        "checkpoint_every": 250,
    }
    continuous = round(arm.continuous * options.steps)
    body = RUNS / f"{arm.body or name}-{seed}-continuous"
    if continuous:
        yield TrainConfig(stage="continuous", output=body, steps=continuous, lr=LR, **common)
    yield TrainConfig(
        stage="discrete",
        scale=SCALE,
        output=RUNS / f"{name}-{seed}",
        init=body / "model.safetensors" if continuous else None,
        steps=options.steps - continuous,
        lr=arm.lr,
        **common,
    )


def chosen(options: argparse.Namespace) -> list[tuple[str, int]]:
    return [(name, seed) for name in options.arms for seed in ARMS[name].seeds]


def finished(config: TrainConfig) -> bool:
    path = config.output / "model.safetensors"
    return path.exists() and loading.read_record(path)["step"] == config.steps


def train(options: argparse.Namespace) -> None:
    """Train what is not trained yet."""
    for name, seed in chosen(options):
        for config in stages(name, seed, options):
            if not finished(config):
                training.train(config, resume=(config.output / "state.pt").exists())


def score(name: str, seed: int, options: argparse.Namespace, held_out: list[Path]) -> dict:
    """The outcome of one finished run."""
    curve, seconds, steps = [], 0, 0
    for config in stages(name, seed, options):
        record = loading.read_record(config.output / "model.safetensors")
        curve += [
            {"step": steps + point["step"], "psnr_x4": point["psnr_x4"]}
            for point in record["curve"]
        ]
        seconds, steps = seconds + record["seconds"], steps + record["step"]
    net = loading.load(config.output / "model.safetensors")
    sets = {"held out": held_out, **{path.name: path for path in options.benchmarks}}
    return {
        "arm": name,
        "seed": seed,
        "steps": steps,
        "seconds": seconds,
        "threads": record["threads"],
        "psnr_y": {
            key: round(evaluation.evaluate(net, files, SCALE).psnr_y, 3)
            for key, files in sets.items()
        },
        "curve": curve,
    }


def report(options: argparse.Namespace) -> None:
    """Score every finished run; write the table, the numbers behind it and the curves."""
    _, held_out = sets.split(sets.list_images(options.data[:1]))
    runs = [
        score(name, seed, options, held_out)
        for name, seed in chosen(options)
        if all(finished(config) for config in stages(name, seed, options))
    ]
    if not runs:
        raise SystemExit("no arm is finished; run `python docs/experiments.py train` first")
    out = ROOT / "docs"
    (out / "experiments.json").write_text(json.dumps(runs, indent=1) + "\n")
    draw(runs, out / "experiments.png")
    (out / "experiments.md").write_text(markdown(runs, len(held_out)))
    print(markdown(runs, len(held_out)))


def markdown(runs: list[dict], held_out: int) -> str:
    """The page docs/experiments.md."""
    sets = list(runs[0]["psnr_y"])
    steps = runs[0]["steps"]
    lines = [
        "# What two stages buy",
        "",
        "Written by `make experiment` (`docs/experiments.py`), the numbers beside it in "
        "`experiments.json`.",
        "",
        f"Every arm: x{SCALE}, {steps:,} steps of 4 LR patches of 48x48, the same photographs, L1, "
        f"Adam, learning rate {LR:g} after a warm-up of 100 steps, cosine over all steps, weights "
        "averaged (EMA), tiny presets. Stage 1 takes 7 steps of 10 at scales from U(1, 4), with "
        "2,304 random pixels a patch for targets where the discrete arms compare all 36,864; stage "
        "2 starts a schedule of its own, with a fresh pixel-shuffle up-sampler.",
        "",
        "HiT-SIR and SwinIR-L are as published: their up-sampler draws the whole picture, while "
        "HiET's adds its own to the bilinear one. In so short a training much of their distance "
        "is that start; a longer one would have to show what is left of it.",
        "",
        f"PSNR-Y in dB: {held_out} photographs held out of training (whole), and the benchmark "
        "sets, which were scored once, when all arms were done. No checkpoint was chosen: it is "
        "each arm's last.",
        "",
        "| arm | | seed | parameters | GMACs to 1280x720 | training, s | "
        + " | ".join(sets)
        + " |",
        "|---|---|--:|--:|--:|--:|" + "--:|" * len(sets),
    ]
    for run in runs:
        arm = ARMS[run["arm"]]
        net = registry.create(arm.network, SCALE, config=arm.options)
        cells = [
            run["arm"],
            arm.title,
            str(run["seed"]),
            f"{parameters(net):,}",
            f"{gmacs(net):.1f}",
            f"{run['seconds']:,}",
            *(f"{run['psnr_y'][key]:.2f}" for key in sets),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        verdict(runs, sets[0]),
        "",
        *differences(runs, sets),
        "",
        "![validation curves](experiments.png)",
        "",
    ]
    return "\n".join(lines)


def verdict(runs: list[dict], key: str) -> str:
    """Which arm is ahead on the held-out photographs, and whether by more than seeds differ."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        scores.setdefault(run["arm"], []).append(run["psnr_y"][key])
    order = sorted(scores, key=lambda name: -mean(scores[name]))
    lead = [f"{name} {mean(scores[name]):.2f} dB" for name in order]
    spread = max((max(values) - min(values) for values in scores.values()), default=0.0)
    gap = mean(scores[order[0]]) - mean(scores[order[-1]])
    return (
        f"On the held-out photographs, by mean over seeds: {', '.join(lead)}. First and last are "
        f"{gap:.2f} dB apart; two seeds of one arm differ by up to {spread:.2f} dB, and no "
        "difference below that says anything."
    )


def differences(runs: list[dict], sets: list[str]) -> list[str]:
    """Each arm against arm a, mean over the seeds; the spread of a's seeds is the yardstick."""

    def scores(name: str, key: str) -> list[float]:
        return [run["psnr_y"][key] for run in runs if run["arm"] == name]

    if not scores("a", sets[0]):
        return []
    lines = [
        "Means over seeds, against arm a (dB):",
        "",
        "| | " + " | ".join(sets) + " |",
        "|---|" + "--:|" * len(sets),
    ]
    for name in dict.fromkeys(run["arm"] for run in runs):
        if name != "a":
            cells = [f"{mean(scores(name, key)) - mean(scores('a', key)):+.2f}" for key in sets]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    spread = [f"{max(scores('a', key)) - min(scores('a', key)):.2f}" for key in sets]
    if len(scores("a", sets[0])) > 1:
        lines.append("| *a, one seed against the other* | " + " | ".join(spread) + " |")
    return lines


def draw(runs: list[dict], path: Path) -> None:
    """Validation PSNR against steps, a line an arm (mean over its seeds)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name in dict.fromkeys(run["arm"] for run in runs):
        curves = [run["curve"] for run in runs if run["arm"] == name]
        points = [
            (step[0]["step"], mean(each["psnr_x4"] for each in step))
            for step in zip(*curves, strict=True)
        ]
        axes.plot(*zip(*points, strict=True), marker=".", label=f"{name}: {ARMS[name].title}")
    axes.set(xlabel="steps", ylabel="PSNR-Y of held-out crops, x4 (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=("train", "report"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=2500, help="of an arm, both stages together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[Path("data/train/photos"), Path("data/train/bsds")],
        help="training folders; held-out photographs come from the first",
    )
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        type=Path,
        default=[Path("data/benchmarks/Set5"), Path("data/benchmarks/Set14")],
    )
    options = parser.parse_args()
    {"train": train, "report": report}[options.verb](options)


if __name__ == "__main__":
    main()
