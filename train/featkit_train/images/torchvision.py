"""Datasets of torchvision as sources: `torchvision:CIFAR10?root=~/data&train=true&download=true`.

After `?` come arguments of torchvision's class. `root` defaults to featkit's cache folder, and
other arguments to torchvision's defaults. Nothing is downloaded without download=true.
"""

from __future__ import annotations

import difflib
import inspect
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image

from featkit.errors import EnvironmentProblem, InputError
from featkit.images import DEFAULT_LIMITS, ImageLimits, printable
from featkit.resources import cache_folder
from featkit.sources import Source, open_source, select
from featkit.sources.base import NOTHING_SKIPPED, Metadata, is_image
from featkit.sources.folder import FileSource
from featkit.sources.opening import TORCHVISION_PREFIX, refuse_unused_column
from featkit.sources.selection import EVERYTHING, Selection
from featkit.wording import one_line
from featkit_train.networks.bodies import borrow

# Attributes in which torchvision's classes keep the paths of their images, alone or as (path,
# label).
PATHS = ("samples", "_samples", "imgs", "_image_files", "images", "_images", "data")
LABELS = ("targets", "labels", "_labels")
NOT_TO_TYPE = frozenset({"transform", "target_transform", "transforms", "loader", "is_valid_file"})
BASES = ("VisionDataset", "DatasetFolder")


@dataclass(frozen=True)
class ClassLabels:
    """The class of each image, if the dataset has classes, and their names."""

    class_ids: Sequence[Any] | None
    names: Sequence[Any]

    def metadata(self, index: int) -> Metadata:
        """Return `label`, and `label_name` if the class has a name."""
        try:
            label = int(self.class_ids[index]) if self.class_ids is not None else -1
        except (TypeError, ValueError):  # a box or a caption instead of a class
            return {}
        if label < 0:
            return {}  # torchvision's mark of unlabeled images
        metadata: Metadata = {"label": label}
        if label < len(self.names):
            name = self.names[label]  # ImageNet's are tuples of synonyms
            metadata["label_name"] = (
                ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)
            )
        return metadata


class TorchvisionFiles(FileSource):
    """A dataset of image files: their bytes, keyed by their paths below the root."""

    def __init__(
        self, name: str, root: Path, paths: list[str], labels: ClassLabels, *, limits: ImageLimits
    ) -> None:
        super().__init__(name, root, paths, limits=limits)
        self._labels = labels

    def metadata(self, item: int) -> Metadata:
        """Return the folder and the class."""
        return super().metadata(item) | self._labels.metadata(item)


class TorchvisionImages:
    """A dataset that returns decoded images. They are encoded as PNG, which is lossless; keys are
    `NAME/split/index`."""

    def __init__(
        self,
        name: str,
        dataset: Any,
        labels: ClassLabels,
        *,
        prefix: str,
        root: Path,
        limits: ImageLimits,
    ) -> None:
        self.name, self.root, self.limits = name, root, limits
        self._dataset, self._labels, self._prefix = dataset, labels, prefix

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return an empty mapping: every image of the dataset is an item."""
        return NOTHING_SKIPPED

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, item: int) -> str:
        """Return `NAME/split/index`."""
        return f"{self._prefix}/{item}"

    def read(self, item: int) -> bytes:
        """Return the image as PNG. InputError if torchvision cannot read it."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        buffer = io.BytesIO()
        try:
            _as_image(self._dataset[item]).save(buffer, "PNG", compress_level=1)
        # torchvision has many readers, which raise arbitrary exceptions.
        except Exception as error:
            raise InputError(
                f"{self.key(item)} cannot be read ({type(error).__name__}: {one_line(error)})."
            ) from error
        data = buffer.getvalue()
        if len(data) > self.limits.max_bytes:
            raise InputError(
                f"{self.key(item)} has {len(data):,} bytes, more than the limit of"
                f" {self.limits.max_bytes:,}."
            )
        return data

    def metadata(self, item: int) -> Metadata:
        """Return the class."""
        return self._labels.metadata(item)

    def file(self, _item: int, /) -> Path:
        """Return the dataset's root."""
        return self.root


def open_training_source(
    spec: str | Path,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    selection: Selection = EVERYTHING,
    check_column: bool = True,
) -> Source:
    """Open what `open_source` opens, or `torchvision:NAME?option=value&...`."""
    if not str(spec).startswith(TORCHVISION_PREFIX) or Path(spec).exists():
        return open_source(spec, limits=limits, selection=selection, check_column=check_column)
    source = select(_open_torchvision(str(spec), limits=limits), selection)
    if check_column:
        refuse_unused_column(selection, source)
    return source


def _open_torchvision(spec: str, *, limits: ImageLimits) -> Source:
    name, _, query = spec.removeprefix(TORCHVISION_PREFIX).partition("?")
    kind = _class_named(name, spec)
    offered = _offered_options(kind)
    options = _read_options(query, offered, spec)
    if "root" in offered:
        options["root"] = (
            Path(options["root"]).expanduser()
            if "root" in options
            else cache_folder() / "torchvision"
        )
        if options.get("download"):
            options["root"].mkdir(parents=True, exist_ok=True)
    root = options.get("root", Path())
    dataset = _construct(kind, options, spec, can_download="download" in offered)
    try:
        count = len(dataset)
    except TypeError:
        count = 0
    if not count:
        raise InputError(f"{spec} has no images.")
    paths, labels = _paths_and_labels(dataset, count)
    if paths:
        return TorchvisionFiles(
            spec, root, [_below(root, path) for path in paths], labels, limits=limits
        )
    split = "/".join(_split_of(options, offered))
    prefix = printable(f"{name}/{split}" if split else name)
    return TorchvisionImages(spec, dataset, labels, prefix=prefix, root=root, limits=limits)


def _class_named(name: str, spec: str) -> type:
    module = borrow("torchvision.datasets")
    base = module.VisionDataset
    datasets = [
        each
        for each in module.__all__
        if each not in BASES and _is_kind(getattr(module, each), base)
    ]
    if name not in datasets:
        near = difflib.get_close_matches(name, datasets, n=5, cutoff=0.5)
        raise InputError(
            f"{spec} does not name a dataset of torchvision; "
            + (f"similar names are {', '.join(near)}." if near else "see its documentation.")
        )
    kind: type = getattr(module, name)
    return kind


def _is_kind(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _offered_options(kind: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class, including those of its bases if it forwards **kwargs."""
    offered: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        parameters = inspect.signature(each).parameters
        for name, parameter in parameters.items():
            if (
                parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
                and name not in NOT_TO_TYPE
            ):
                offered.setdefault(name, parameter)
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return offered


def _read_options(
    query: str, offered: Mapping[str, inspect.Parameter], spec: str
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in query.split("&") if query else []:
        option, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"{spec} contains {pair!r}; write it as option=value.")
        if option not in offered:
            near = difflib.get_close_matches(option, offered, n=1)
            hint = (
                f"a similar one is {near[0]}."
                if near
                else f"its options are: {', '.join(offered) or '(none)'}."
            )
            raise InputError(f"{spec}: torchvision has no option {option!r} here; {hint}")
        options[option] = _value(text, offered[option])
    needed = [
        each
        for each, parameter in offered.items()
        if parameter.default is parameter.empty and each != "root"
    ]
    if missing := [each for each in needed if each not in options]:
        raise InputError(
            f"{spec} lacks what torchvision requires: {', '.join(missing)}; add {missing[0]}=VALUE."
        )
    return options


def _value(text: str, parameter: inspect.Parameter) -> str | int | bool:
    """Parse true, false and integers; keep text if the class expects text, as for VOC's
    year=2012."""
    if (
        isinstance(parameter.default, str)
        or parameter.annotation is str
        or parameter.name == "root"
    ):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def _construct(kind: type, options: dict[str, Any], spec: str, *, can_download: bool) -> Any:
    try:
        return kind(**options)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{spec} needs {error.name}, which is not installed; run: pip install {error.name}."
        ) from error
    except URLError as error:
        raise EnvironmentProblem(
            f"{spec} cannot be downloaded ({one_line(error)}); check the network."
        ) from error
    # torchvision reads pickles, archives and matrices, and raises whatever their readers raise.
    except Exception as error:
        remedy = "name its folder with root=FOLDER"
        if can_download and not options.get("download"):
            remedy = f"download it with download=true, or {remedy}"
        location = f" in {options['root']}" if "root" in options else ""
        raise InputError(
            f"{spec} cannot be opened{location} ({one_line(error)}); {remedy}."
        ) from error


def _paths_and_labels(dataset: Any, count: int) -> tuple[list[str], ClassLabels]:
    """Return the paths of a dataset's images, [] if it returns them decoded, and their classes."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    class_ids = next(
        (values for name in LABELS if _is_list_of(values := getattr(dataset, name, None), count)),
        None,
    )
    for attribute in PATHS:
        entries = getattr(dataset, attribute, None)
        if not isinstance(entries, list) or len(entries) != count:
            continue
        pairs = [
            entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
            for entry in entries
        ]
        if all(isinstance(path, str | Path) and is_image(str(path)) for path, _ in pairs):
            paths = [str(path) for path, _ in pairs]
            if len(set(paths)) == count:
                of_pairs = (
                    [label for _, label in pairs]
                    if attribute in ("samples", "_samples", "imgs")
                    else None
                )
                return paths, ClassLabels(class_ids if class_ids is not None else of_pairs, names)
    return [], ClassLabels(class_ids, names)


def _is_list_of(values: Any, count: int) -> bool:
    return isinstance(values, list | np.ndarray | torch.Tensor) and len(values) == count


def _below(root: Path, path: str) -> str:
    """Return a path relative to the root; the absolute path of a file outside it."""
    whole, whole_root = (Path(os.path.normpath(each.absolute())) for each in (Path(path), root))
    return str(whole.relative_to(whole_root) if whole.is_relative_to(whole_root) else whole)


def _split_of(options: Mapping[str, Any], offered: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the requested split of the dataset; keys begin with it."""
    parts: list[str] = []
    for option in sorted(set(offered) - {"root", "download"}):
        value = options.get(option, offered[option].default)
        if option == "train":
            parts.append("train" if value else "test")
        elif option in options or option == "split":
            parts.append(str(value) if option == "split" else f"{option}={value}")
    return parts


def _as_image(item: Any) -> Image.Image:
    """Return the image of an item (image, target) in a mode that PNG can store."""
    image = item[0] if isinstance(item, tuple) else item
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"torchvision gives a {type(image).__name__}, not an image")
    return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image
