"""Everything a training run can be told, as frozen dataclasses; recipes (YAML) and flags are read
onto them by one code.

A recipe is a mapping of the sections below; `--set optim.lr=0.002` is the same mapping, one leaf of
it. A key that is not there is an error that names its nearest neighbor.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from featkit.errors import InputError
from featkit_train.networks.classifier import ClassifierConfig
from featkit_train.networks.heads import HeadConfig
from featkit_train.networks.noise import NoiseConfig
from featkit_train.networks.vit import ViTConfig

RECIPES = Path(__file__).parent / "recipes"
# The least that settings of a run can be.
LEAST_BATCH = 2  # images; a loss needs two to tell apart
LEAST = {
    "run": {
        **dict.fromkeys(
            ("steps", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints"), 1
        ),
        **dict.fromkeys(("seed", "workers", "held_out", "cache_bytes"), 0),
        "batch_size": LEAST_BATCH,
    },
    "engine": {"accumulate": 1},
    "gram": {"update_every": 1, "max_updates": 0},
    "pretrained": {"head_steps": 0},
    "watch": {"patience": 1},
    "crops": {"fixed_views": 0},
    "born_again": {"generations": 0, "patience": 1},
    "self_training": {"rounds": 1, "patience": 1},
}
# Keys as they were spelled in earlier versions; read with a warning for one release.
OLD_KEYS = {
    "colour": "color",  # quoted
    "grey_probability": "gray_probability",
    "solarise_probability": "solarize_probability",
    "licence": "license",  # quoted
    "labelled_share": "labeled_share",
}
OLD_RECIPES = {"small_labelled": "small_labeled"}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Sizes that a share of the steps is made at, in pixels."""

    share: float
    global_size: int
    local_size: int
    gram_size: int = 0  # of the Gram teacher's crops, where there is one

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise ValueError(f"a share of {self.share} of the steps is none")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Multi-crop (DINO, appendix; SwAV): sides in pixels, scales as shares of the image's area."""

    global_size: int = 224
    local_size: int = 96
    num_local: int = 8  # 0 trains on the two global crops alone
    # Each step is made at one of these, drawn by their shares (DINOv3, section 5.1); none: at the
    # sizes above.
    resolutions: tuple[Resolution, ...] = ()
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    rotation_degrees: float = 0.0  # up to this, either way; not in the paper
    rotation_probability: float = 0.5
    flip_probability: float = 0.5
    # bicubic: as the released code, and a little slower
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    # views that an image has, which epochs take in turn; 0: a new one every epoch
    fixed_views: int = 0

    def __post_init__(self) -> None:
        for low, high in (self.global_scale, self.local_scale):
            if not 0 < low <= high <= 1:
                raise ValueError(f"scales of {low} to {high} are not from more than 0 up to 1")


@dataclass(frozen=True, kw_only=True)
class ColorConfig:
    """Color, blur and solarize (DINO's released code); blur and solarize differ between the two
    global crops."""

    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray_probability: float = 0.2
    # first global, second global, local
    blur_probability: tuple[float, float, float] = (1.0, 0.1, 0.5)
    # pixels of a crop of `blur_side`; scaled with the crop's side
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    # 0: blur_sigma is in the pixels of every crop, whatever its side, as in the released code
    blur_side: int = 224
    solarize_probability: tuple[float, float, float] = (0.0, 0.2, 0.0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with DINO's schedules, or SGD by the same."""

    # sgd: with Nesterov's momentum, which is the first of `betas`
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 5e-4  # at 256 images a step; DINO, section "Implementation details"
    # sqrt: at 1,024 images (DINOv2); constant: at any batch
    lr_rule: Literal["linear", "sqrt", "constant"] = "linear"
    # of the learning rate, after the warm-up; constant: DINOv3
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = 1e-6
    warmup_steps: int = 100
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    layer_decay: float = 1.0  # factor of the rate from one block to the one below (DINOv2: 0.9)
    patch_embed_lr: float = 1.0  # factor of the patch embedding's rate (DINOv2: 0.2)
    clip_grad: float = 3.0  # largest norm of gradients; 0 is no clipping
    # Whose norm: all gradients', the backbone's and each head's (DINOv2, DINOv3), or each weight's
    # (DINO, iBOT: their code).
    clip_by: Literal["all", "part", "weight"] = "all"
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How slowly the teacher follows its student."""

    # share of the teacher that a step keeps; None: by the number of steps, see `momentum_for`
    momentum: float | None = None
    momentum_end: float | None = None  # None: a tenth of the distance to 1 that `momentum` has

    def __post_init__(self) -> None:
        for momentum in (self.momentum, self.momentum_end):
            if momentum is not None and not 0 <= momentum <= 1:
                raise ValueError(f"a momentum of {momentum} is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """The loss between class tokens (DINO, arXiv 2104.14294), and how the teacher's targets are
    kept from collapsing."""

    head: HeadConfig = field(default_factory=HeadConfig)
    # of both losses; sinkhorn: of SwAV, as DINOv2 does
    centering: Literal["center", "sinkhorn"] = "center"
    center_momentum: float = 0.9
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    teacher_temp_end: float = 0.07
    teacher_temp_steps: int = 1000
    freeze_last_layer_steps: int = 100
    koleo_weight: float = 0.0  # of each global crop (DINOv2: 0.1)
    # images among which a nearest neighbor is sought; 0: the whole batch; DINOv3: 16
    koleo_group: int = 0


@dataclass(frozen=True, kw_only=True)
class IbotConfig:
    """The loss between patch tokens (iBOT, arXiv 2111.07832) and the masks it needs."""

    weight: float = 1.0
    head: HeadConfig | None = None  # None: the class token's head serves both
    teacher_temp: float = 0.04
    teacher_temp_end: float = 0.07
    mask_probability: float = 0.5  # share of global crops that are masked at all
    # share of a masked crop's patches, drawn uniformly
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    mask_aspect: float = 0.3  # least height over width of a block; the largest is its inverse

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        if not 0 <= low <= high <= 1:
            raise ValueError(f"mask ratios of {low} to {high} are not from 0 up to 1")
        if not 0 < self.mask_aspect <= 1:
            raise ValueError(f"mask_aspect {self.mask_aspect} is not more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class GramConfig:
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4): the patches' likeness to each other
    stays an earlier teacher's."""

    weight: float = 0.0  # 0 is no anchoring; the paper's stage takes 2
    # a run, or anything `featkit export` takes; None: this run's own teacher as it begins
    teacher: str | None = None
    size: int = 512  # pixels of the crops that the Gram teacher sees, of the same boxes
    update_every: int = 10_000  # steps after which it becomes the present teacher
    max_updates: int = 3


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Weights made elsewhere: the frozen teacher of `distill`, the beginning of `adapt`. They come
    without heads."""

    name: str = "dinov2_vitl14"  # a published name, a run's folder, or a folder of Hugging Face's
    weights: str | None = None  # a file or folder of that name's, instead of the hub
    # whose of a training's checkpoint; None: the first it has
    branch: Literal["teacher", "ema", "student"] | None = None
    # heads learn on the frozen backbone for so long, before anything else does
    head_steps: int = 500


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Where the labels of images are."""

    # of the source; of a folder without one, the folder that an image lies in
    column: str = "label"
    smoothing: float = 0.0  # share of a label that is spread over all classes alike


@dataclass(frozen=True, kw_only=True)
class KnowledgeConfig:
    """What a student is taught by its teacher's outputs, beside the labels."""

    # kd: the teacher's distribution; cwtm: the labels alone, each image by the teacher's
    # confidence; dkpp: the distribution with all but its maximum permuted (Born-Again Networks,
    # arXiv 1805.04770, section 3.2).
    mode: Literal["kd", "cwtm", "dkpp"] = "kd"
    temperature: float = 1.0  # of both distributions
    label_weight: float = 1.0  # 0 learns from the teacher alone
    teacher_weight: float = 1.0
    # Keep the teacher's logits on disk, where crops.fixed_views says that the same views come
    # again; never: compute them anew.
    cache: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        if self.mode == "cwtm" and (self.temperature, self.label_weight, self.teacher_weight) != (
            1.0,
            1.0,
            1.0,
        ):
            raise ValueError(
                "cwtm learns from the labels alone, so that temperature, label_weight and"
                " teacher_weight say nothing"
            )


@dataclass(frozen=True, kw_only=True)
class BornAgainConfig:
    """Generations of one architecture, each taught by the one before (arXiv 1805.04770)."""

    generations: int = 3  # students after the first network; 0 trains that alone
    # generations in a row that may fail to beat the best before them beyond noise
    patience: int = 1
    # another architecture for all generations after the first
    student: ClassifierConfig | None = None


@dataclass(frozen=True, kw_only=True)
class SelfTrainingConfig:
    """A teacher labels images for its student (Noisy Student, arXiv 1911.04252)."""

    rounds: int = 2  # students after the teacher
    patience: int = 1  # rounds in a row that may fail to beat the best before them beyond noise
    # labels: the teacher's distribution, or its best class
    pseudo: Literal["soft", "hard"] = "soft"
    confidence: float = 0.3  # the least that the teacher's best class must have; the paper's
    # as many images of each class, the most confident first, others again where there are too few
    balance: bool = True
    labeled_share: float = 0.25  # the least share of a batch with labels of people's
    # steps of a student over its teacher's; it has more images to see, under noise
    student_length: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1 or not 0 <= self.labeled_share < 1:
            raise ValueError(
                f"confidence {self.confidence} and labeled_share {self.labeled_share} are no shares"
            )
        if self.student_length <= 0:
            raise ValueError(f"student_length {self.student_length} is not above 0")


@dataclass(frozen=True, kw_only=True)
class InternalConfig:
    """Exits taught by the deepest one (Be Your Own Teacher, arXiv 1905.08094); numbers of its
    released code."""

    # share of the deepest exit's distribution in what a shallower one learns from
    alpha: float = 0.1
    # of the distance to the deepest exit's vector; the code's 1e-6 is for a sum over maps
    feature_weight: float = 0.03
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha {self.alpha} is no share")


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What ends a run before it ruins its model: kNN among the held-out images where they have
    labels, else copies found."""

    tolerance: float = 1.0  # a fall below the best by more than this counts; 1 never does
    # so many measurements in a row, or the last; the run ends, and the model is the best again
    patience: int = 2


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is spread and what is traded for memory; only `accumulate` changes what is
    learned, by KoLeo and noise."""

    # fully_shard: weights, gradients and moments spread over the processes of torchrun
    shard: bool = False
    # parts that a process cuts its share of a batch into; KoLeo and noise are of a part
    accumulate: int = 1
    compile: bool = False  # torch.compile for the blocks
    # compute blocks again in the backward pass instead of keeping them
    checkpoint_activations: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The loop: how long, how much at once, what it writes and when."""

    steps: int = 10_000
    batch_size: int = 64  # images a step, of all processes together
    seed: int = 0
    # images kept from training for copy recall; fewer when they would be over a tenth
    held_out: int = 100
    workers: int = 1
    cache_bytes: int = 1 << 30  # decoded images kept by all workers of a process together
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    on_collapse: Literal["stop", "warn"] = "stop"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run, whole. A method reads some of the sections; settings of the others are refused."""

    method: str = "dino"
    name: str = "backbone"
    license: str = "unstated"
    data_name: str = ""  # public names of the data, for the model's card; the paths when empty
    # how images are brought to global_size after training
    resize: Literal["shorter_side", "stretch"] = "shorter_side"
    # an earlier run to go on from with other settings: its student, teacher and heads
    init: str | None = None
    model: ViTConfig = field(default_factory=ViTConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    gram: GramConfig = field(default_factory=GramConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    born_again: BornAgainConfig = field(default_factory=BornAgainConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    internal: InternalConfig = field(default_factory=InternalConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for section, leasts in LEAST.items():
            for name, least in leasts.items():
                value = getattr(getattr(self, section), name)
                if value < least:
                    raise InputError(f"{section}.{name} is {value}; it must be at least {least}.")
        if self.run.batch_size % self.engine.accumulate:
            batch, parts = self.run.batch_size, self.engine.accumulate
            raise InputError(
                f"run.batch_size {batch} is not a multiple of engine.accumulate {parts}; change"
                " either."
            )


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The mapping of a recipe that ships (`tiny`) or of a YAML file. InputError when there is none
    or it is no mapping."""
    name_or_path = _today(name_or_path, OLD_RECIPES, "recipe")
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
        raise InputError(
            f"{path} holds no mapping of sections; see `{RECIPES.name}/tiny.yaml` for one."
        )
    return _with_todays_keys(mapping)


def with_settings(mapping: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`mapping` with each `section.key=value` put in, the value read as YAML. InputError for any
    other form."""
    merged = _with_todays_keys(mapping)
    for setting in settings:
        dotted, separator, text = setting.partition("=")
        if not separator:
            raise InputError(
                f"--set {setting} has no value; write it as section.key=value, such as"
                " optim.lr=0.002."
            )
        place = merged
        *sections, leaf = (_today(key, OLD_KEYS, "setting") for key in dotted.split("."))
        for number, section in enumerate(sections, 1):
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(
                    f"The setting {'.'.join(sections[:number])} is a value, not a section; {dotted}"
                    " names none."
                )
        try:
            place[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(
                f"--set {setting} has a value that is not YAML: {_one_line(error)}"
            ) from error
    return merged


def from_mapping(kind: type[T], mapping: Mapping[str, Any], *, at: str = "") -> T:
    """A dataclass of `kind` from a mapping of its fields, nested alike; missing fields keep their
    defaults.

    InputError for a key that is not a field, naming the nearest that is, and for a value of another
    type.
    """
    hints = typing.get_type_hints(kind)
    mapping = _with_todays_keys(mapping)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            meant = (
                f"; did you mean {at}{near[0]}?"
                if near
                else f"; it is none of: {', '.join(hints)}."
            )
            raise InputError(f"There is no setting {at}{key}{meant}")
    values = {key: _convert(value, hints[key], at=f"{at}{key}") for key, value in mapping.items()}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind here is a dataclass
        needed = part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING
        if needed and part.name not in values:
            raise InputError(f"{at.rstrip('.')} has no {part.name}; give it one.")
    try:
        return kind(**values)
    except ValueError as error:  # sizes that do not go together
        raise InputError(
            f"The settings of {at.rstrip('.') or 'the run'} do not go together: {error}."
        ) from error


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """The config as plain lists, mappings and numbers, every field resolved; from_mapping reads it
    back."""
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
        return _convert(
            value, next(arm for arm in typing.get_args(hint) if arm is not type(None)), at=at
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"The setting {at} is a mapping of names to values, not {value!r}.")
        return {str(key): part for key, part in value.items()}
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise InputError(
                f"The setting {at} is one of {', '.join(map(str, typing.get_args(hint)))}, not"
                f" {value!r}."
            )
        return value
    if origin is tuple:
        arms = typing.get_args(hint)
        if (
            len(arms) == 2
            and arms[1] is Ellipsis
            and isinstance(value, Sequence)
            and not isinstance(value, str)
        ):
            arms = (arms[0],) * len(value)
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


def _with_todays_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy with the keys of earlier versions renamed."""
    return {
        _today(key, OLD_KEYS, "setting"): (
            _with_todays_keys(value) if isinstance(value, Mapping) else value
        )
        for key, value in mapping.items()
    }


def _today(name: str, renamed: Mapping[str, str], what: str) -> str:
    """`name`, or what it is called now, with a warning."""
    if name not in renamed:
        return name
    warnings.warn(
        f"The {what} {name} is called {renamed[name]} now; the old name will be refused by the"
        " next release.",
        FutureWarning,
        stacklevel=2,
    )
    return renamed[name]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
