"""Two-stage training, C2D-ISR's recipe: continuous scales first, then one discrete scale.

Stage `continuous` draws a scale per sample from U(1, 4) and compares random queries of an implicit
decoder; stage `discrete` takes the body of a continuous checkpoint, gives it a fresh pixel-shuffle
up-sampler and trains one scale. All randomness of step k is a function of (seed, k), so a run that
is stopped and resumed sees exactly the batches of an unbroken one.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import checkpoints, data, metrics, registry
from .allocator import keep_freed_memory
from .training_config import ConfigError, TrainConfig, load_config

console = Console(stderr=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine down to 1 % of `lr` at the end."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
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


def build_network(config: TrainConfig) -> nn.Module:
    """A fresh network; with `init`, everything but its up-sampler comes from that checkpoint."""
    torch.manual_seed(config.seed)
    try:
        net = registry.create(config.network, scale=config.scale, config=config.options)
    except TypeError as error:
        raise ConfigError(f"options: {config.network} cannot be built so: {error}") from error
    if config.init is not None:
        source = checkpoints.load(config.init)
        if source.name != config.network:
            raise ConfigError(
                f"init: {config.init} holds {source.name!r}, but network is {config.network!r}"
            )
        body = {
            key: value
            for key, value in source.state_dict().items()
            if not key.startswith("upsample.")
        }
        missing, unexpected = net.load_state_dict(body, strict=False)
        wrong = [key for key in missing if not key.startswith("upsample.")] + list(unexpected)
        if wrong:
            raise ConfigError(
                f"init: {config.init} does not fit {config.network!r}; "
                f"the first weight that differs is {wrong[0]}"
            )
    return net


class Trainer:
    """The state of a run (network, EMA, optimiser, step, history) and the loop over it."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.device = torch.device(config.device)
        self.net = build_network(config).to(self.device)
        self.average = AveragedModel(self.net, multi_avg_fn=warmed_average(config.ema))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.forward = torch.compile(self._loss) if config.compile else self._loss

        training, self.held_out = data.split(data.list_images(config.data))
        if config.stage == "continuous":
            self.batches = data.ContinuousBatches(
                training,
                patch=config.patch,
                queries=config.queries,
                scale=(1.0, config.max_scale),
                batch=config.batch,
                seed=config.seed,
            )
        else:
            self.batches = data.DiscreteBatches(
                training,
                scale=config.scale,
                patch=config.patch,
                batch=config.batch,
                seed=config.seed,
            )
        self.held_out, photos, unread = data.read_all(self.held_out)
        if unread and not photos:
            raise ConfigError(f"no held-out photograph can be read; the first: {unread[0]}")
        self.left_out = self.batches.left_out + unread
        self.validation_photos = [
            centre_crop(photo, config.validation_crop).clone()
            for photo in photos[: config.validation_images]
        ]

    # ---- one step

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.config.stage == "continuous":
            return F.l1_loss(
                self.net(batch["lr"], coords=batch["coords"], cell=batch["cell"]), batch["target"]
            )
        return F.l1_loss(self.net(batch["lr"]), batch["hr"])

    def train_step(self, batch: dict[str, Tensor]) -> float:
        """Update once on `batch` (CPU tensors); returns the L1 loss in image units [0, 1]."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        half = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.config.autocast
            else nullcontext()
        )
        with half:
            loss = self.forward(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        value = float(loss.detach())
        if math.isfinite(value):  # a broken step must not reach the weights
            self.optimizer.step()
            self.average.update_parameters(self.net)
            self.step += 1
        return value

    # ---- validation on photographs that training never sees

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR-Y (dB) of the averaged network on crops of held-out photos: {"psnr_x4": ...}."""
        net = self.average.module.eval()
        scales = [self.config.scale] if self.config.stage == "discrete" else [2.0, 3.0, 4.0]
        scores = {}
        for scale in scales:
            values = []
            for photo in self.validation_photos:
                lr, hr = data.lr_pair(photo, scale)
                lr, hr = lr[None].float().to(self.device) / 255, hr.float() / 255
                sr = (
                    net(lr)
                    if self.config.stage == "discrete"
                    else net(lr, size=tuple(hr.shape[-2:]))
                )
                values.append(metrics.psnr_y(sr[0].float().cpu(), hr, border=math.ceil(scale)))
            scores[f"psnr_x{scale:g}"] = sum(values) / len(values)
        return scores

    # ---- files

    @property
    def state_path(self) -> Path:
        return self.config.output / "state.pt"

    def save(self) -> None:
        """Write the resumable state and the averaged weights, each whole or not at all.

        Raises ConfigError if there is no room for them; those written before remain.
        """
        self.config.output.mkdir(parents=True, exist_ok=True)
        state = {
            "config": self.config.model_dump(mode="json"),
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        temporary = self.state_path.with_suffix(".pt.part")
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.state_path)
            checkpoints.save(
                self.average.module, self.config.output / "model.safetensors", record=self.record()
            )
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError for a full disk
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ConfigError(
                f"step {self.step} cannot be saved in {self.config.output}: {reason}; "
                "what was saved before is still there"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def resume(self) -> None:
        """Continue from `output/state.pt`; length and learning rate may differ, the task not."""
        try:
            state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        except FileNotFoundError as error:
            raise ConfigError(f"nothing to resume: {self.state_path} does not exist") from error
        saved, now = {"options": {}, **state["config"]}, self.config.model_dump(mode="json")
        for key in ("network", "options", "stage", "scale", "seed", "batch", "patch"):
            if saved[key] != now[key]:
                raise ConfigError(f"cannot resume: {key} was {saved[key]!r}, is now {now[key]!r}")
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def record(self) -> dict[str, Any]:
        """What it takes to judge or repeat the weights: configuration, data, curve, machine."""
        return {
            "config": self.config.model_dump(
                mode="json", exclude={"output", "data", "init", "threads"}
            ),
            "data": [folder.name for folder in self.config.data],
            "init": self.config.init.stem if self.config.init else None,
            "training_images": len(self.batches.files),
            "held_out_images": len(self.held_out),
            "step": self.step,
            "seconds": round(self.seconds),
            "device": f"{self.device.type} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "curve": self.history,
        }

    # ---- the loop

    def run(self) -> None:
        """Train to `config.steps`; Ctrl-C and SIGTERM save and leave.

        Raises ConfigError, with the state saved, when the loss is not finite any more.
        """
        console.print(
            f"{self.config.network}, {self.config.stage}: step {self.step} of {self.config.steps}"
        )
        if self.left_out:
            count = len(self.left_out) + len(self.batches.files) + len(self.held_out)
            console.print(f"{len(self.left_out)} of {count} images are left out:", *self.left_out)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn(
                "{task.fields[speed]:.2f} steps/s  loss {task.fields[loss]:.4f}"
                "  {task.fields[scores]}"
            ),
        )
        with stop_signal() as stop, Progress(*columns, console=console) as progress:
            task = progress.add_task(
                "",
                total=self.config.steps,
                completed=self.step,
                speed=0.0,
                loss=math.nan,
                scores="",
            )
            began, loss_sum, loss_count = time.perf_counter(), 0.0, 0
            for batch in self._prefetched():
                loss = self.train_step(batch)
                if not math.isfinite(loss):
                    self.save()
                    raise ConfigError(
                        f"the loss became {loss} at step {self.step}; "
                        f"the state before it is in {self.state_path}: "
                        "lower 'lr' or 'clip' and resume"
                    )
                now = time.perf_counter()
                self.seconds, speed, began = self.seconds + now - began, 1 / (now - began), now
                loss_sum, loss_count = loss_sum + loss, loss_count + 1
                progress.update(task, completed=self.step, speed=speed, loss=loss_sum / loss_count)
                last = self.step == self.config.steps or stop.is_set()
                if last or self.step % self.config.validate_every == 0:
                    scores = {name: round(value, 3) for name, value in self.validate().items()}
                    self.history.append(
                        {"step": self.step, "loss": round(loss_sum / loss_count, 5), **scores}
                    )
                    loss_sum, loss_count = 0.0, 0
                    text = json.dumps(self.history[-1])
                    progress.update(
                        task, scores=" ".join(f"{k[5:]} {v:.2f} dB" for k, v in scores.items())
                    )
                    progress.console.print(text)
                if last or self.step % self.config.checkpoint_every == 0:
                    self.save()
                if stop.is_set():
                    console.print(f"stopped at step {self.step}; continue with --resume")
                    return

    def _prefetched(self) -> Iterator[dict[str, Tensor]]:
        """Batches from the current step on, the next one made while the current one trains."""
        with ThreadPoolExecutor(1) as worker:
            future = worker.submit(self.batches.batch, self.step)
            for step in range(self.step, self.config.steps):
                batch = future.result()
                if step + 1 < self.config.steps:
                    future = worker.submit(self.batches.batch, step + 1)
                yield batch


def centre_crop(image: Tensor, side: int) -> Tensor:
    """The middle `side` x `side` pixels of (3, H, W), in multiples of 12 for x2, x3 and x4."""
    height, width = (min(length, side) // 12 * 12 for length in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set instead of ending the process; a second one ends it."""
    event = threading.Event()
    previous = {}

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
    try:
        yield event
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Run one stage; returns the path of its weights, the average `<output>/model.safetensors`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if not resume and (config.output / "state.pt").exists():
        raise ConfigError(
            f"output {config.output} already holds a run: "
            "continue it with --resume or choose another"
        )
    if torch.device(config.device).type == "cpu":
        keep_freed_memory()
    trainer = Trainer(config)
    if resume:
        trainer.resume()
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "config.yaml").write_text(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    )
    trainer.run()
    return config.output / "model.safetensors"


def run(config_path: str | Path, overrides: list[str] | None = None, resume: bool = False) -> Path:
    """`c2d train`: read the configuration, then train.  Raises ConfigError with one sentence."""
    return train(load_config(config_path, overrides), resume=resume)
