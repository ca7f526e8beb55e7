"""Everything a training run can be told, as frozen dataclasses; recipes (YAML) and flags are read onto them by one code.

A recipe is a mapping of the sections below; `--set optim.lr=0.002` is the same mapping, one leaf of it. A key that is
not there is an error that names its nearest neighbour.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from featkit.errors import InputError
from featkit_train.heads import HeadConfig
from featkit_train.vit import ViTConfig

RECIPES = Path(__file__).parent / "recipes"
# The least that settings of a run can be.
LEAST = {
    **dict.fromkeys(("steps", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints"), 1),
    **dict.fromkeys(("seed", "workers", "held_out", "cache_bytes"), 0),
    "batch_size": 2,
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Multi-crop (DINO, appendix; SwAV): sides in pixels, scales as shares of the picture's area."""

    global_size: int = 224
    local_size: int = 96
    num_local: int = 8  # 0 trains on the two global crops alone
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    rotation_degrees: float = 0.0  # up to this, either way; not in the paper
    rotation_probability: float = 0.5
    flip_probability: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """Colour, blur and solarise, as in DINO's released code; blur and solarise differ between the two global crops."""

    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_probability: float = 0.2
    blur_probability: tuple[float, float, float] = (1.0, 0.1, 0.5)  # first global, second global, local
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of a 224-pixel crop; scaled with the crop's side
    solarise_probability: tuple[float, float, float] = (0.0, 0.2, 0.0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with DINO's schedules."""

    lr: float = 5e-4  # at 256 images a step; DINO, section "Implementation details"
    lr_rule: Literal["linear", "constant"] = "linear"  # constant: `lr` as it stands, at any batch
    min_lr: float = 1e-6
    warmup_steps: int = 100
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_grad: float = 3.0  # largest norm of all gradients; 0 is no clipping
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """Numbers of the DINO method (arXiv 2104.14294)."""

    head: HeadConfig = field(default_factory=HeadConfig)
    centering: Literal["center", "sinkhorn"] = "center"  # sinkhorn: of SwAV, as DINOv2 does
    center_momentum: float = 0.9
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    teacher_temp_end: float = 0.07
    teacher_temp_steps: int = 1000
    momentum: float = 0.996
    momentum_end: float = 1.0
    freeze_last_layer_steps: int = 100
    koleo_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The loop: how long, how much at once, what it writes and when."""

    steps: int = 10_000
    batch_size: int = 64
    seed: int = 0
    held_out: int = 100  # pictures kept from training for copy recall; fewer when they would be over a tenth
    workers: int = 1
    cache_bytes: int = 1 << 30  # decoded pictures kept by all workers together
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    on_collapse: Literal["stop", "warn"] = "stop"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run, whole."""

    method: str = "dino"
    name: str = "backbone"
    licence: str = "unstated"
    data_name: str = ""  # public names of the data, for the model's card; the paths when empty
    resize: Literal["shorter_side", "stretch"] = "shorter_side"  # how pictures are brought to global_size after training
    model: ViTConfig = field(default_factory=ViTConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    colour: ColourConfig = field(default_factory=ColourConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        sizes = [self.crops.global_size] + [self.crops.local_size] * (self.crops.num_local > 0)
        for size in sizes:
            if size % self.model.patch:
                raise InputError(f"a crop of {size} pixels is no multiple of the patch of {self.model.patch}; change one.")
        for name, least in LEAST.items():
            if getattr(self.run, name) < least:
                raise InputError(f"run.{name} is {getattr(self.run, name)}; it must be at least {least}.")


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The mapping of a recipe that ships (`tiny`) or of a YAML file. InputError when there is none or it is no mapping."""
    shipped = RECIPES / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise InputError(f"There is no recipe {name_or_path}; name a YAML file or one of: {known}.")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(mapping, dict):
        raise InputError(f"{path} holds no mapping of sections; see `{RECIPES.name}/tiny.yaml` for one.")
    return mapping


def with_settings(mapping: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`mapping` with each `section.key=value` put in, the value read as YAML. InputError for any other form."""
    merged = _deep_copy(mapping)
    for setting in settings:
        dotted, separator, text = setting.partition("=")
        if not separator:
            raise InputError(f"--set {setting} has no value; write it as section.key=value, such as optim.lr=0.002.")
        place = merged
        *sections, leaf = dotted.split(".")
        for number, section in enumerate(sections, 1):
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"The setting {'.'.join(sections[:number])} is a value, not a section; {dotted} names none.")
        try:
            place[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting} has a value that is not YAML: {_one_line(error)}") from error
    return merged


def from_mapping(kind: type[T], mapping: Mapping[str, Any], *, at: str = "") -> T:
    """A dataclass of `kind` from a mapping of its fields, nested alike; missing fields keep their defaults.

    InputError for a key that is not a field, naming the nearest that is, and for a value of another type.
    """
    hints = typing.get_type_hints(kind)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            meant = f"; did you mean {at}{near[0]}?" if near else f"; it is none of: {', '.join(hints)}."
            raise InputError(f"There is no setting {at}{key}{meant}")
    values = {key: _convert(value, hints[key], at=f"{at}{key}") for key, value in mapping.items()}
    try:
        return kind(**values)
    except ValueError as error:  # sizes that do not go together
        raise InputError(f"The settings of {at.rstrip('.') or 'the run'} do not go together: {error}.") from error


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """The config as plain lists, mappings and numbers, every field resolved; from_mapping reads it back."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _convert(value: Any, hint: Any, *, at: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise InputError(f"The setting {at} is a section with keys of its own, not {value!r}.")
        return from_mapping(hint, value, at=f"{at}.")
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(value, next(arm for arm in typing.get_args(hint) if arm is not type(None)), at=at)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"The setting {at} is one of {', '.join(map(str, typing.get_args(hint)))}, not {value!r}.")
        return value
    if origin is tuple:
        arms = typing.get_args(hint)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(arms):
            raise InputError(f"The setting {at} is a list of {len(arms)} values, not {value!r}.")
        return tuple(_convert(part, arm, at=at) for part, arm in zip(value, arms, strict=True))
    return _scalar(value, hint, at=at)


def _scalar(value: Any, hint: type, *, at: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-6 as text
        except (TypeError, ValueError):
            pass
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"The setting {at} is of type {hint.__name__}, not {value!r}.")


def _one_line(error: yaml.YAMLError) -> str:
    """What is wrong and where, which yaml spreads over lines."""
    return " ".join(str(error).split())


def _deep_copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
