"""All settings of a training run, as frozen dataclasses.

The string under a field documents it, and bounds are part of its type, as `Annotated`:
`featkit train --settings` prints both. settings.py reads recipes and flags into these classes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from featkit.errors import InputError
from featkit_train.networks.classifier import ClassifierConfig
from featkit_train.networks.heads import HeadConfig
from featkit_train.networks.noise import NoiseConfig
from featkit_train.networks.vit_config import ViTConfig


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest value that a setting may have."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f"at least {self.least:g}"
        return f"from {self.least:g} to {self.most:g}"


LEAST_BATCH = 2  # images; the losses compare images with each other
NonNegative = Annotated[int, Bounds(0)]
Positive = Annotated[int, Bounds(1)]
Share = Annotated[float, Bounds(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Crop sizes, in pixels, for a share of the steps."""

    share: float
    """Relative to the other resolutions' shares."""
    global_size: int
    """Side of global crops."""
    local_size: int
    """Side of local crops."""
    gram_size: int = 0
    """Side of the Gram teacher's crops, with Gram anchoring."""

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise ValueError(f"a resolution's share is {self.share}, not above 0")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Multi-crop (DINO, appendix; SwAV). Sides are in pixels, scales are shares of the image's
    area."""

    global_size: int = 224
    """Side of global crops; the trained model takes images of this size, unless `test_size` is
    set."""
    test_size: Positive | None = None
    """Side of the images that the trained model takes. Crops show things larger than whole images
    do, so a side above global_size may suit (FixRes, arXiv 1906.06423). null: global_size, also if
    that is set by itself."""
    local_size: int = 96
    """Side of local crops."""
    num_local: int = 8
    """Local crops of each image; 0 trains on the two global crops alone."""
    resolutions: tuple[Resolution, ...] = ()
    """Several sets of sizes: each step draws one by its share (DINOv3, section 5.1). Empty: the
    sizes above."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop."""
    rotation_degrees: float = 0.0
    """Largest rotation, either way; not in the papers."""
    rotation_probability: float = 0.5
    """Share of crops that are rotated."""
    flip_probability: float = 0.5
    """Share of crops that are mirrored."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How crops are resized. The released code uses bicubic, which is a little slower."""
    fixed_views: NonNegative = 0
    """Different views of each image, which epochs cycle through; 0 draws a new view every
    epoch."""

    def __post_init__(self) -> None:
        for low, high in (self.global_scale, self.local_scale):
            if not 0 < low <= high <= 1:
                raise ValueError(f"scales from {low} to {high} are not above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class ColorConfig:
    """Color jitter, blur and solarization (DINO's released code). Lists of three are for the first
    global crop, the second global crop and local crops."""

    jitter_probability: float = 0.8
    """Share of crops whose colors are jittered."""
    brightness: float = 0.4
    """Largest relative change of brightness."""
    contrast: float = 0.4
    """Largest relative change of contrast."""
    saturation: float = 0.2
    """Largest relative change of saturation."""
    hue: float = 0.1
    """Largest shift of hue, as a share of the color circle."""
    gray_probability: float = 0.2
    """Share of crops turned gray."""
    blur_probability: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Share of crops that are blurred."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Blur radius, in pixels of a crop of `blur_side`."""
    blur_side: int = 224
    """Crop side that `blur_sigma` is for; it scales with a crop's side. 0: the same radius for
    crops of any side, as in the released code."""
    solarize_probability: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Share of crops that are solarized."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or SGD, both with DINO's schedules."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd uses Nesterov momentum with the first of `betas`."""
    lr: float = 5e-4
    """Learning rate after warmup, at the batch size that `lr_rule` names (DINO, "Implementation
    details")."""
    lr_rule: Literal["linear", "sqrt", "constant"] = "linear"
    """How `lr` scales with the batch: linear from 256 images, sqrt from 1,024 (DINOv2), or not at
    all."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after warmup; DINOv3 keeps it constant."""
    min_lr: float = 1e-6
    """Learning rate at the last step of the cosine."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly to `lr`."""
    weight_decay: float = 0.04
    """Weight decay at the first step."""
    weight_decay_end: float = 0.4
    """Weight decay at the last step, reached by a cosine."""
    layer_decay: float = 1.0
    """Factor of the learning rate from one block to the block below it (DINOv2: 0.9)."""
    patch_embed_lr: float = 1.0
    """Factor of the patch embedding's learning rate (DINOv2: 0.2)."""
    clip_grad: float = 3.0
    """Largest gradient norm; 0 does not clip."""
    clip_by: Literal["all", "part", "weight"] = "all"
    """Which norm is clipped: that of all gradients, of the backbone and of each head (DINOv2,
    DINOv3), or of each weight (the released code of DINO and iBOT)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How slowly the momentum teacher follows the student."""

    momentum: Share | None = None
    """Share of the teacher's weights that each step keeps. null: derived from the number of steps,
    0.9 up to 4,000 steps and 0.996 from 100,000."""
    momentum_end: Share | None = None
    """Momentum at the last step. null: a tenth of the first momentum's distance from 1."""


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """The loss between class tokens (DINO, arXiv 2104.14294), and what keeps the teacher's targets
    from collapsing."""

    head: HeadConfig = field(default_factory=HeadConfig)
    """The projection head."""
    centering: Literal["center", "sinkhorn"] = "center"
    """For both losses: DINO's moving center, or Sinkhorn-Knopp (SwAV, DINOv2)."""
    center_momentum: float = 0.9
    """Share of the moving center that each step keeps."""
    student_temp: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: float = 0.04
    """Temperature of the teacher's softmax at the first step."""
    teacher_temp_end: float = 0.07
    """Temperature of the teacher's softmax from `teacher_temp_steps` on."""
    teacher_temp_steps: int = 1000
    """Steps over which the teacher's temperature changes."""
    freeze_last_layer_steps: int = 100
    """Steps before the prototypes start to learn."""
    koleo_weight: float = 0.0
    """Weight of KoLeo, for each global crop (DINOv2: 0.1)."""
    koleo_group: int = 0
    """Images among which KoLeo looks for nearest neighbors; 0: the whole batch (DINOv3: 16)."""


@dataclass(frozen=True, kw_only=True)
class IbotConfig:
    """The loss between patch tokens (iBOT, arXiv 2111.07832) and the masks it needs."""

    weight: float = 1.0
    """Weight of the patch loss; 0 leaves it out."""
    head: HeadConfig | None = None
    """The patch tokens' projection head, with the keys of dino.head. null: one head serves both."""
    teacher_temp: float = 0.04
    """Temperature of the teacher's softmax over patches at the first step."""
    teacher_temp_end: float = 0.07
    """Temperature of the teacher's softmax over patches from dino.teacher_temp_steps on."""
    mask_probability: float = 0.5
    """Share of global crops that are masked."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Share of a masked crop's patches, drawn uniformly from this range."""
    mask_aspect: float = 0.3
    """Smallest height over width of a masked block; the largest is its inverse."""

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        if not 0 <= low <= high <= 1:
            raise ValueError(f"mask ratios of {low} to {high} are not from 0 up to 1")
        if not 0 < self.mask_aspect <= 1:
            raise ValueError(f"mask_aspect {self.mask_aspect} is not above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class GramConfig:
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4): similarities between patches stay those
    of an earlier teacher."""

    weight: float = 0.0
    """Weight of the Gram loss; 0 leaves it out, the paper uses 2."""
    teacher: str | None = None
    """A run, or anything that `featkit export` takes. null: this run's own teacher at the first
    step."""
    size: int = 512
    """Side in pixels of the Gram teacher's crops, which show the same boxes as the student's."""
    update_every: Positive = 10_000
    """Steps between two updates of the Gram teacher from the present teacher."""
    max_updates: NonNegative = 3
    """Updates of the Gram teacher over the whole run."""


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Published weights: the frozen teacher of `distill`, the starting point of `adapt`. They come
    without heads."""

    name: str = "dinov2_vitl14"
    """A published name, a run folder, or a Hugging Face folder."""
    weights: str | None = None
    """A file or folder with the weights, used instead of downloading them."""
    branch: Literal["teacher", "ema", "student"] | None = None
    """Which network of a training checkpoint to take. null: the first it holds."""
    head_steps: NonNegative = 500
    """Steps that train only the heads, on the frozen backbone, before anything else learns."""


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """The labels of images."""

    column: str = "label"
    """The source's column of labels. For a folder without that column, the subfolder's name is the
    label."""
    smoothing: float = 0.0
    """Share of each label spread evenly over all classes."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network of the methods that match whole images and no patches."""

    arch: str = "vit"
    """vit: the vision transformer of `model`. featkit:convnet: a small residual CNN, which learns
    fastest from small images on a CPU. timm:NAME or torchvision:NAME: a network of theirs."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the constructor, such as {widths: [64, 128, 256]}; those of `vit` are in
    `model`."""

    def __post_init__(self) -> None:
        if self.arch != "vit":
            self.classifier()
        elif self.options:
            raise InputError(
                "network.options are not for network.arch vit, whose settings are those of model."
            )

    def classifier(self) -> ClassifierConfig:
        """Return the same network as a classifier's backbone. InputError for an unknown library."""
        return ClassifierConfig(arch=self.arch, options=self.options)


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Labels and DINO's loss together: a cosine classifier behind a projector (t-ReX, arXiv
    2206.15369)."""

    label_weight: float = 1.0
    """Weight of the labels' cross-entropy."""
    self_weight: float = 1.0
    """Weight of DINO's loss."""
    temperature: float = 0.1
    """Temperature of the classifier's cosines."""
    num_layers: Positive = 2
    """Linear layers of the projector; 1 has no hidden layer."""
    hidden_width: Positive = 1024
    """Width of the projector's hidden layers."""
    bottleneck_width: Positive = 256
    """Width of the vectors that are compared with the classes."""
    mix_probability: Share = 0.0
    """Share of the steps in which a box of each image is another image's, and its targets are mixed
    by area (CutMix, arXiv 1905.04899)."""


@dataclass(frozen=True, kw_only=True)
class KnowledgeConfig:
    """Learning from a teacher's outputs, besides the labels."""

    mode: Literal["kd", "cwtm", "dkpp"] = "kd"
    """kd: the teacher's distribution. cwtm: the labels alone, each image weighted by the teacher's
    confidence. dkpp: the distribution with all but its maximum permuted (Born-Again Networks,
    arXiv 1805.04770, section 3.2)."""
    temperature: float = 1.0
    """Temperature of both distributions."""
    label_weight: float = 1.0
    """Weight of the labels; 0 learns from the teacher alone."""
    teacher_weight: float = 1.0
    """Weight of the teacher's distribution."""
    cache: Literal["auto", "never"] = "auto"
    """auto: keep the teacher's logits on disk when crops.fixed_views makes views repeat. never:
    compute them again each time."""

    def __post_init__(self) -> None:
        weights = (self.temperature, self.label_weight, self.teacher_weight)
        if self.mode == "cwtm" and weights != (1.0, 1.0, 1.0):
            raise ValueError(
                "cwtm learns from the labels alone and does not use temperature, label_weight and"
                " teacher_weight; leave them at 1"
            )


@dataclass(frozen=True, kw_only=True)
class BornAgainConfig:
    """Generations of one architecture, each taught by the one before (arXiv 1805.04770)."""

    generations: NonNegative = 3
    """Students after the first network; 0 trains the first network alone."""
    patience: Positive = 1
    """Consecutive generations that may fail to beat the best earlier one beyond noise; then the run
    ends."""
    student: ClassifierConfig | None = None
    """Another architecture for the generations after the first, with the keys of classifier."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainingConfig:
    """A teacher labels images for its student (Noisy Student, arXiv 1911.04252)."""

    rounds: Positive = 2
    """Students after the teacher."""
    patience: Positive = 1
    """Consecutive rounds that may fail to beat the best earlier one beyond noise; then the run
    ends."""
    pseudo: Literal["soft", "hard"] = "soft"
    """Pseudo-labels: the teacher's distribution, or its most probable class."""
    confidence: Share = 0.3
    """Smallest probability of the teacher's best class for an image to be used; the paper's."""
    balance: bool = True
    """Take equally many images of each class, the most confident first. Classes with too few
    repeat theirs."""
    labeled_share: Share = 0.25
    """Smallest share of human-labeled images in a batch; must be below 1."""
    student_length: float = 1.0
    """A student's steps relative to its teacher's. Students see more images, and under noise."""

    def __post_init__(self) -> None:
        if self.labeled_share == 1:
            raise ValueError("labeled_share is 1, which leaves no room for pseudo-labels")
        if self.student_length <= 0:
            raise ValueError(f"student_length is {self.student_length}, not above 0")


@dataclass(frozen=True, kw_only=True)
class InternalConfig:
    """Exits taught by the deepest one (Be Your Own Teacher, arXiv 1905.08094). Unless noted,
    defaults are those of its released code."""

    alpha: Share = 0.1
    """Share of the deepest exit's distribution in a shallower exit's target."""
    feature_weight: float = 0.03
    """Weight of the distance to the deepest exit's vector. The released code's 1e-6 is for a sum
    over feature maps."""
    temperature: float = 3.0
    """Temperature of the exits' distributions."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When to end a run early, before it ruins its model. The watched score is kNN accuracy on
    labeled held-out images, else copy recall."""

    tolerance: float = 1.0
    """A score counts as a fall when it is below the best one by more than this; 1 never counts."""
    patience: Positive = 2
    """Consecutive falls, or one at the last step, that end the run and restore the best model."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How to spread the work and save memory. Only `accumulate` changes what is learned, through
    KoLeo and noise."""

    shard: bool = False
    """Spread weights, gradients and moments over torchrun's processes (fully_shard)."""
    accumulate: Positive = 1
    """Micro-batches of a process's share of a batch; KoLeo and noise see one at a time."""
    compile: bool = False
    """Run torch.compile on the blocks."""
    checkpoint_activations: bool = False
    """Recompute blocks in the backward pass instead of keeping their activations."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length of the run, batch, data loading, and intervals of measuring and saving."""

    steps: Positive = 10_000
    """Optimization steps."""
    batch_size: Annotated[int, Bounds(LEAST_BATCH)] = 64
    """Images per step, over all processes."""
    seed: NonNegative = 0
    """Seed of all randomness."""
    held_out: NonNegative = 100
    """Images kept from training to measure on; at most a tenth of them."""
    workers: NonNegative = 1
    """Processes that read and crop images, for each training process."""
    cache_bytes: NonNegative = 1 << 30
    """Decoded images cached, in bytes, by all workers of a process together."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto takes bfloat16 if the hardware multiplies it natively."""
    log_every: Positive = 10
    """Steps between two lines of metrics."""
    evaluate_every: Positive = 200
    """Steps between two measurements on held-out images."""
    checkpoint_every: Positive = 200
    """Steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints to keep."""
    on_collapse: Literal["stop", "warn"] = "stop"
    """Stop the run when its outputs collapse, or only warn."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. A method reads some of the sections and refuses settings of the others."""

    method: str = "dino"
    """The training method; `featkit train --list` names all."""
    name: str = "backbone"
    """The model's name, stored in its file and its indexes."""
    license: str = "unstated"
    """License of the trained weights, for the model's card."""
    data_name: str = ""
    """Public name of the data, for the model's card; empty: the paths."""
    resize: Literal["shorter_side", "stretch"] = "shorter_side"
    """How the trained model brings images to crops.global_size."""
    init: str | None = None
    """Folder of an earlier run to start from, with its student, teacher and heads."""
    model: ViTConfig = field(default_factory=ViTConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
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
    joint: JointConfig = field(default_factory=JointConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    born_again: BornAgainConfig = field(default_factory=BornAgainConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    internal: InternalConfig = field(default_factory=InternalConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for name, value, bounds in _bounded(self):
            if value is not None and not bounds.least <= value <= bounds.most:
                raise InputError(f"{name} is {value}; it must be {bounds}.")
        batch, parts = self.run.batch_size, self.engine.accumulate
        if batch % parts:
            raise InputError(
                f"run.batch_size {batch} is not a multiple of engine.accumulate {parts}; change"
                " either."
            )


def bounds_of(hint: Any) -> Bounds | None:
    """Return the bounds in a field's type, also within `| None`."""
    if typing.get_origin(hint) is Annotated:
        return next((each for each in hint.__metadata__ if isinstance(each, Bounds)), None)
    return next(filter(None, map(bounds_of, typing.get_args(hint))), None)


def field_types(section: type[Any]) -> dict[str, Any]:
    """Return the type of each field of a section, with its bounds."""
    return typing.get_type_hints(section, include_extras=True)


def _bounded(section: Any, at: str = "") -> Iterator[tuple[str, Any, Bounds]]:
    """Yield dotted name, value and bounds of every setting that has bounds."""
    for name, hint in field_types(type(section)).items():
        value, bounds = getattr(section, name), bounds_of(hint)
        if dataclasses.is_dataclass(value):
            yield from _bounded(value, f"{at}{name}.")
        elif bounds is not None:
            yield f"{at}{name}", value, bounds
