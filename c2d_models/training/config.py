"""The configuration of a training run: one YAML file, every field typed and checked."""

from __future__ import annotations

import difflib
import importlib
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..errors import ConfigError
from .augmentation import Augmentation
from .degradation import Degradations


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, Path)) else value


Folders = Annotated[list[Path], BeforeValidator(_listed)]
"""One folder or several."""


class TrainConfig(BaseModel):
    """One training run.  Lengths are in steps, sizes in LR pixels."""

    model_config = ConfigDict(extra="forbid")

    imports: list[str] = Field(
        default_factory=list,
        description="modules that register networks of one's own, installed or beside this file",
    )
    network: str
    options: dict[str, Any] = Field(
        default_factory=dict, description="constructor arguments that differ from the network's"
    )
    stage: Literal["continuous", "discrete"]
    scale: int | None = Field(None, ge=1, le=8, description="discrete stage only")
    init: Path | None = Field(
        None, description="checkpoint whose body is taken; the up-sampler stays fresh"
    )
    init_upsampler: bool = Field(
        False, description="fine-tuning: take init's up-sampler too, which must have this scale"
    )
    data: Folders = Field(min_length=1)
    lr_data: Folders | None = Field(
        None,
        description="discrete stage: a folder of LR files, <name>x<scale>.png or <name>.png, for "
        "each folder of `data`; without it, LR is made by bicubic reduction",
    )
    licences: list[str] = Field(
        default_factory=list, description="licences of the training images, for the record"
    )
    output: Path

    steps: int = Field(ge=1)
    batch: int = Field(16, ge=1, description="samples per step in each process")
    patch: int = Field(64, ge=16)
    queries: int = Field(4096, ge=1, description="continuous stage: HR pixels compared per sample")
    max_scale: float = Field(
        4.0, gt=1, le=8, description="continuous stage: scales are drawn from U(1, max_scale)"
    )
    augmentation: Augmentation = Field(
        default_factory=Augmentation,
        description="colour augmentation of the patches; not with lr_data",
    )
    degradations: Degradations | None = Field(
        None,
        description="of the LR patches, for everyday photographs ({} for the usual shares); not "
        "with lr_data",
    )
    lr: float = Field(4e-4, gt=0, le=1)
    warmup: int = Field(100, ge=0)
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: list[int] = Field(
        default_factory=list, description="multistep: steps at which lr is halved"
    )
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.999, ge=0, lt=1)
    autocast: Literal["bfloat16"] | None = None
    autocast_from: int = Field(
        600,
        ge=0,
        description="first step with autocast: near the start most gradients of the body "
        "are below bfloat16's rounding, and a run that rounds there stays where it began",
    )
    compile: bool = False
    threads: int | None = Field(None, ge=1)
    device: str = Field("cpu", description="cpu, cuda, cuda:1, or auto")
    seed: int = Field(0, ge=0, lt=2**32)
    workers: int = Field(1, ge=1, description="threads that cut batches ahead of the steps")

    validate_every: int = Field(500, ge=1)
    validation_images: int = Field(8, ge=1)
    validation_crop: int = Field(
        192, ge=32, description="HR side of the centre crop that is scored"
    )
    checkpoint_every: int = Field(500, ge=1)
    keep: int = Field(
        0, ge=0, description="how many of the latest checkpoints are kept under their own names"
    )

    @property
    def factor(self) -> int:
        """The scale of stage 'discrete', which has one."""
        if self.scale is None:
            raise TypeError("stage 'continuous' has no scale of its own")
        return self.scale

    @model_validator(mode="after")
    def _stage_has_its_scale(self) -> TrainConfig:
        if self.stage == "discrete" and self.scale is None:
            raise ValueError("stage 'discrete' needs 'scale', e.g. scale: 4")
        if self.stage == "continuous" and self.scale is not None:
            raise ValueError(
                "stage 'continuous' draws its scales from U(1, max_scale): remove 'scale'"
            )
        return self

    @model_validator(mode="after")
    def _lr_data_fits(self) -> TrainConfig:
        if self.lr_data is None:
            return self
        if self.stage == "continuous":
            raise ValueError(
                "stage 'continuous' makes LR images at scales of its own: remove 'lr_data'"
            )
        if len(self.lr_data) != len(self.data):
            raise ValueError(
                f"lr_data has {len(self.lr_data)} folders and data {len(self.data)}: "
                "give one LR folder for each, in the same order"
            )
        for key, made in (
            ("augmentation", self.augmentation != Augmentation()),
            ("degradations", self.degradations is not None),
        ):
            if made:
                raise ValueError(f"{key} makes LR images of its own: remove it or 'lr_data'")
        return self

    @model_validator(mode="after")
    def _milestones_fit(self) -> TrainConfig:
        if self.schedule == "cosine" and self.milestones:
            raise ValueError("schedule 'cosine' has no milestones: remove them or take 'multistep'")
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError(
                "schedule 'multistep' needs 'milestones', e.g. milestones: [250000, 400000]"
            )
        steps = [0, *self.milestones]
        if any(late <= early for early, late in pairwise(steps)):
            raise ValueError(f"milestones must be above 0 and increase, got {self.milestones}")
        return self

    @model_validator(mode="after")
    def _upsampler_has_a_source(self) -> TrainConfig:
        if self.init_upsampler and self.init is None:
            raise ValueError("init_upsampler needs 'init', the checkpoint to fine-tune")
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file, apply ``key=value`` overrides and check every field.

    Raises ConfigError with one sentence for an unreadable file, an unknown key (with a suggestion)
    or a bad value.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: not text, or not a date
        raise ConfigError(f"{path} is not valid YAML{_fault(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
    overridden = set()
    for override in overrides or []:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set takes key=value, got {override!r}")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # such as 2026-02-30
            raise ConfigError(f"--set {override} is not valid YAML{_fault(error)}") from error
        overridden.add(key.strip())
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(path, overridden, error)) from error
    for name in config.imports:
        _import(name, path.parent)
    return config


def _import(name: str, folder: Path) -> None:
    """Import a module that is installed or lies in a folder."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise ConfigError(f"imports: {name} needs {error.name}, which is not here") from error
        raise ConfigError(f"imports: no module {name} is installed or lies in {place}") from error
    except Exception as error:
        raise ConfigError(f"imports: {name} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(place)


def _fault(error: Exception) -> str:
    """The fault and its place, for the end of a sentence."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f": {error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return f": {str(error).splitlines()[0]}"


def _sentence(path: Path | str, overridden: set[str], error: ValidationError) -> str:
    # a wrong key explains the missing one, not vice versa
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    if first["loc"] and first["loc"][0] in overridden:
        path = "--set"
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"known keys: {', '.join(TrainConfig.model_fields)}"
        )
        return f"{path}: unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"{path}: the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {key}: {message}, got {first['input']!r}" if key else f"{path}: {message}"
