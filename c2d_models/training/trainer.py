"""Two-stage training, C2D-ISR's recipe: continuous scales first, then one discrete scale.

Stage `continuous` draws a scale per sample from U(1, 4) and compares random queries of an implicit
decoder; stage `discrete` takes the body of a continuous checkpoint, gives it a fresh pixel-shuffle
up-sampler and trains one scale. All randomness of step k is a function of (seed, k), so a run that
is stopped and resumed sees exactly the batches of an unbroken one. Under `torchrun` several
processes make each step together (processes.py).
"""

from __future__ import annotations

import math
import platform
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..devices import choose_device
from ..errors import ConfigError
from ..files import remove_leftovers, write_whole
from ..networks import checkpoint, registry
from ..networks.network import Network
from ..pretrained import loading
from . import data as training_data
from .allocator import keep_freed_memory
from .augmentation import Augmentation
from .config import TrainConfig, load_config
from .log import RunningMean, TrainingLog
from .processes import Processes, join, stop_signal
from .run_folder import RunFolder
from .validation import Validation, mean_psnr

console = Console(stderr=True)

TASK = (
    "network",
    "options",
    "stage",
    "scale",
    "seed",
    "patch",
    "queries",
    "max_scale",
    "augmentation",
    "degradations",
)
"""The keys of a configuration that a resumed run keeps."""
SOURCES = ("data", "lr_data", "init")
"""Those that it may change, and says so."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup` steps, then the schedule.

    "cosine": half a cosine down to 1 % of `lr` at the end; "multistep": half at each milestone.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "multistep":
        return config.lr * 0.5 ** sum(step >= milestone for milestone in config.milestones)
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def warmed_average(decay: float) -> Callable[..., None]:
    """An exponential moving average of weights, for `AveragedModel`.

    After n updates it keeps min(decay, (1 + n) / (10 + n)) of itself: a constant 0.999 would leave
    8 % of the fresh weights in the average of 2,500 steps.
    """

    def update(average: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
        keep = min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(average, weights, 1 - keep)

    return torch.no_grad()(update)


def build_network(config: TrainConfig) -> Network:
    """A fresh network; with `init`, its body comes from that checkpoint.

    The up-sampler comes too if `init_upsampler` says so, for fine-tuning at the same scale.
    """
    torch.manual_seed(config.seed)
    try:
        net = registry.create(config.network, scale=config.scale, config=config.options)
    except TypeError as error:
        raise ConfigError(
            f"options: {config.network} cannot be built with them: {error}"
        ) from error
    if config.init is not None:
        source = loading.load(config.init)
        if source.name != config.network:
            raise ConfigError(
                f"init: {config.init} holds {source.name!r}, but network is {config.network!r}"
            )
        if config.init_upsampler and source.scale != config.scale:
            has, wants = (f"x{s}" if s else "continuous" for s in (source.scale, config.scale))
            raise ConfigError(
                f"init: {config.init} is {has}, but this run {wants}; "
                "without init_upsampler its body is taken alone"
            )
        weights, wanted = (
            {
                key: value
                for key, value in each.state_dict().items()
                if config.init_upsampler or not key.startswith("upsample.")
            }
            for each in (source, net)
        )
        wrong = [
            key
            for key in {**wanted, **weights}
            if key not in wanted or key not in weights or wanted[key].shape != weights[key].shape
        ]
        if wrong:
            raise ConfigError(
                f"init: {config.init} does not fit {config.network!r}; "
                f"the first weight that differs is {wrong[0]}"
            )
        net.load_state_dict(weights, strict=False)
    return net


class Trainer:
    """The state of a run (network, EMA, optimiser, step, history) and the loop over it."""

    def __init__(self, config: TrainConfig, processes: Processes | None = None):
        self.config = config
        self.processes = processes or Processes(choose_device(config.device))
        self.device = self.processes.device
        self.net = build_network(config).to(self.device)
        self.average = AveragedModel(self.net, multi_avg_fn=warmed_average(config.ema))
        self.shared = self.processes.share(self.net)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.folder = RunFolder(config.output, config.keep)
        self.step = 0
        self.saved_step: int | None = None
        self.changed: list[str] = []  # sentences on what a resumed run reads instead
        self.seconds = 0.0
        self.losses = RunningMean()  # since the last validation
        self.history: list[dict[str, float]] = []
        self.forward = torch.compile(self._loss) if config.compile else self._loss

        self.data = training_data.read(config)
        self.batches = self.data.batches
        self.validation = Validation(self.data.validation, self.device)

    # ---- one step

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.config.stage == "continuous":
            colours = self.shared(batch["lr"], coords=batch["coords"], cell=batch["cell"])
            return F.l1_loss(colours, batch["target"])
        return F.l1_loss(self.shared(batch["lr"]), batch["hr"])

    def train_step(self, batch: dict[str, Tensor]) -> float:
        """Update once on `batch` (CPU tensors, of this process).

        Returns the L1 loss in image units [0, 1], the mean over all processes. If it, or else the
        gradient's norm, is not finite, that is returned, and weights and step stay as they are.
        """
        # The same in all processes: HiET rolls its position encoding by it, once a step.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        rounds = self.config.autocast is not None and self.step >= self.config.autocast_from
        with torch.autocast(self.device.type, torch.bfloat16) if rounds else nullcontext():
            loss = self.forward(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip))
        value = self.processes.mean(float(loss.detach()))
        if math.isfinite(value) and not math.isfinite(norm):
            value = norm
        if math.isfinite(value):  # a broken step must not reach the weights
            self.optimizer.step()
            self.average.update_parameters(self.net)
            self.step += 1
        return value

    # ---- files

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "processes": self.processes.count,
            "step": self.step,
            "seconds": self.seconds,
            "losses": (self.losses.count, self.losses.total),
            "history": self.history,
        }

    def save(self) -> None:
        """Write the averaged weights and the resumable state, each whole or not at all.

        Raises ConfigError if there is no room for them; those written before remain.
        """
        with self._room():
            self.folder.save(self.averaged, self.record(), self._state())
        self.saved_step = self.step

    def save_best(self) -> None:
        """Write the averaged weights if the newest validation is the best so far."""
        *earlier, newest = (mean_psnr(entry) for entry in self.history)
        if newest >= max(earlier, default=-math.inf):
            with self._room():
                self.folder.save_best(self.averaged, self.record())

    @property
    def averaged(self) -> Network:
        """The network whose weights are the average."""
        return cast(Network, self.average.module)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """A full disk, or a folder that cannot be written, as one sentence."""
        try:
            yield
        except OSError as error:
            kept = "" if self.saved_step is None else f"; step {self.saved_step} is still there"
            raise ConfigError(
                f"step {self.step} cannot be saved in {self.config.output}: {error.strerror}{kept}"
            ) from error

    def resume(self) -> None:
        """Continue from `output/state.pt`; length, rate and data may differ, the task may not.

        The task is all of `TASK`, and the number of samples in a step of all processes.
        """
        state = self.folder.read_state(self.device)
        if state.keys() != self._state().keys():
            raise ConfigError(f"cannot resume: {self.folder.state} is not the state of a run")
        newer = {"augmentation": Augmentation().model_dump(), "degradations": None}  # than 0.1
        saved = newer | state["config"]
        now = self.config.model_dump(mode="json")
        for key in TASK:
            if saved[key] != now[key]:
                raise ConfigError(f"cannot resume: {key} was {saved[key]!r}, is now {now[key]!r}")
        if state["step"] > self.config.steps:
            raise ConfigError(
                f"cannot resume: the run is at step {state['step']}, past 'steps', "
                f"{self.config.steps}"
            )
        before = (saved["batch"], state["processes"])
        after = (self.config.batch, self.processes.count)
        if math.prod(before) != math.prod(after):
            raise ConfigError(
                f"cannot resume: a step had {before[0]} samples in each of {before[1]} processes, "
                f"now {after[0]} in each of {after[1]}; their product must stay"
            )
        self.changed = [
            f"{key} was {saved[key]}, is now {now[key]}"
            for key in SOURCES
            if saved[key] != now[key]
        ]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.saved_step, self.losses = self.step, RunningMean(*state["losses"])

    def record(self) -> dict[str, Any]:
        """The record to judge or repeat the weights by: configuration, data, curve, machine."""
        return {
            "config": self.config.model_dump(
                mode="json", exclude={"output", "data", "lr_data", "init", "threads", "workers"}
            ),
            "data": [folder.name for folder in self.config.data],
            "lr_data": [folder.name for folder in self.config.lr_data or []],
            "init": _name(self.config.init) if self.config.init else None,
            "training_images": len(self.batches.files),
            "held_out_images": len(self.data.held_out),
            "step": self.step,
            "seconds": round(self.seconds),
            "device": f"{self.device.type} {platform.machine()}",
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "curve": self.history,
        }

    # ---- the loop

    def run(self) -> int:
        """Train to `config.steps`; Ctrl-C and SIGTERM, in any process, save and leave.

        Returns the number of the signal that stopped this process, or 0. Raises ConfigError, with
        a state saved, when the loss or a gradient is not finite any more.
        """
        config, first = self.config, self.processes.first
        log = TrainingLog(config.output, self.step, config.steps, console, self.losses, shown=first)
        log.say(f"{config.network}, {config.stage}: step {self.step} of {config.steps}")
        for sentence in self.changed:
            log.say(sentence)
        if left_out := self.data.left_out:
            count = len(left_out) + len(self.batches.files) + len(self.data.held_out)
            log.say(f"{len(left_out)} of {count} images are left out:", *left_out, sep="\n")
        with stop_signal() as stop, log:
            for batch in self._prefetched():
                rate = learning_rate(config, self.step)
                loss = self.train_step(batch)
                if not math.isfinite(loss):
                    self._leave_broken(loss)
                self.seconds += log.step(self.step, loss, rate)
                last = self.step == config.steps
                if first and (last or self.step % config.validate_every == 0):
                    scores = self.validation.scores(self.averaged)
                    self.history.append(log.validation(self.step, scores))
                    log.pictures(self.step, lambda: self.validation.pictures(self.averaged))
                    self.save_best()
                stopped = self.processes.any(bool(stop.number))
                if first and (last or stopped or self.step % config.checkpoint_every == 0):
                    self.save()
                if stopped and not last:
                    log.say(f"stopped at step {self.step}; continue with --resume")
                    break
            else:
                stop.number = 0  # a signal that came after the last step changes nothing
                log.say(f"trained: {config.output / checkpoint.FILE_NAME}")
            self.processes.wait()  # process 0 may still be validating and saving
        return stop.number

    def _leave_broken(self, value: float) -> NoReturn:
        """ConfigError in process 0 and its exit code, in silence, in the others.

        The last saved state is kept: what is reached now would break again at the same batch.
        """
        if self.processes.first and self.saved_step is None:
            self.save()
        self.processes.wait()  # torchrun ends all processes as soon as one has failed
        if not self.processes.first:
            raise SystemExit(2)
        way_out = (
            f"{self.folder.state} is of step {self.saved_step}: lower 'lr' or 'clip' and resume"
            if self.saved_step != self.step
            else f"{self.folder.state} holds the weights that it came from: "
            "lower 'lr' or 'clip' and start anew"
        )
        raise ConfigError(f"the loss or a gradient became {value} at step {self.step}; {way_out}")

    def _prefetched(self) -> Iterator[dict[str, Tensor]]:
        """Batches from the current step on; each of `workers` threads makes one ahead."""
        first, end, rank = self.step, self.config.steps, self.processes.rank
        ahead = self.config.workers
        with ThreadPoolExecutor(ahead) as pool:
            coming = deque(
                pool.submit(self.batches.batch, step, rank)
                for step in range(first, min(first + ahead, end))
            )
            for step in range(first, end):
                batch = coming.popleft().result()
                if step + ahead < end:
                    coming.append(pool.submit(self.batches.batch, step + ahead, rank))
                yield batch


def _name(model: Path) -> str:
    """A model for people: a shipped one's name, a file's, or that of the run's folder."""
    return model.parent.name if model.name == checkpoint.FILE_NAME else model.stem


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Run one stage; returns the path of its weights, the average `<output>/model.safetensors`.

    A process that trains alone and is stopped by a signal saves and raises SystemExit(128 + the
    signal's number), 130 for Ctrl-C; for several processes torchrun decides.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if not resume and RunFolder(config.output).state.exists():
        raise ConfigError(
            f"output {config.output} already holds a run: "
            "continue it with --resume or choose another"
        )
    with join(config.device) as processes:
        if processes.device.type == "cpu":
            keep_freed_memory()
        trainer = Trainer(config, processes)
        if resume:
            trainer.resume()
        if processes.first:
            config.output.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_whole(config.output / "config.yaml", text.encode())
            remove_leftovers(config.output)
        stopped = trainer.run()
        if stopped and processes.count == 1:
            raise SystemExit(128 + stopped)
    return config.output / checkpoint.FILE_NAME


def run(config_path: str | Path, overrides: list[str] | None = None, resume: bool = False) -> Path:
    """`c2d train`: read the configuration, then train.  Raises ConfigError with one sentence."""
    return train(load_config(config_path, overrides), resume=resume)
