"""Promises of `torchvision:NAME?option=value`: torchvision's images, byte for byte or pixel for
pixel."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from featkit.errors import EnvironmentProblem
from featkit.images import ImageLimits, decode
from featkit.sources import Source, open_source
from featkit.sources.selection import Selection
from featkit_train.images.torchvision import open_training_source
from tests.featkit.sources.files import contents, keys
from tests.images import draw_folder, draw_image
from tests.processes import run_python
from tests.sentences import refused
from tests.torchvision_without_cuda import import_quietly

CLASSES = ["airplane", "automobile", "bird"]


@pytest.fixture(autouse=True)
def datasets() -> Any:
    """Return torchvision's module of datasets."""
    return import_quietly("torchvision.datasets")


def write_cifar10(root: Path, patch: pytest.MonkeyPatch, kind: Any) -> dict[str, np.ndarray]:
    """Write CIFAR-10's format with two images a file; return the images (2, 32, 32, 3) of each
    file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    drawn = {}
    for seed, name in enumerate(
        [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    ):
        drawn_images = np.stack(
            [np.asarray(draw_image(10 * seed + place, height=32, width=32)) for place in range(2)]
        )
        rows = drawn_images.transpose(0, 3, 1, 2).reshape(2, -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [seed % 3, 2]}))
        drawn[name] = drawn_images
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))

    def md5(name: str) -> str:
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    patch.setattr(kind, "train_list", [[name, md5(name)] for name in drawn if name != "test_batch"])
    patch.setattr(kind, "test_list", [["test_batch", md5("test_batch")]])
    patch.setattr(
        kind, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5("batches.meta")}
    )
    return drawn


def write_mnist(
    root: Path, name: str = "MNIST", *, split: str = "train", count: int = 3
) -> np.ndarray:
    """Write MNIST's raw files; return images (count, 28, 28) of the classes 0, 1, 2, ..."""
    folder = root / name / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    drawn_images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    for other in {"train", "t10k"}:
        shown = drawn_images if other == split else drawn_images[:1]
        (folder / f"{other}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 2051, len(shown), 28, 28) + shown.tobytes()
        )
        (folder / f"{other}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 2049, len(shown)) + bytes(range(len(shown)))
        )
    return drawn_images


def pixels(source: Source) -> list[np.ndarray]:
    """Decode all images as training does."""
    return [decode(data).pixels for data in contents(source)]


def read_all(source: Source, numbers: Sequence[int]) -> list[bytes]:
    return [source.read(number) for number in numbers]


def test_cifar10_keeps_its_pixels_and_label_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: Any
) -> None:
    drawn = write_cifar10(tmp_path, monkeypatch, datasets.CIFAR10)
    train = open_training_source(f"torchvision:CIFAR10?root={tmp_path}")
    assert keys(train) == [f"CIFAR10/train/{number}" for number in range(10)]
    assert np.array_equal(
        pixels(train), np.concatenate([drawn[f"data_batch_{number}"] for number in range(1, 6)])
    )
    assert [train.metadata(number) for number in (0, 1, 2)] == [
        {"label": 0, "label_name": "airplane"},
        {"label": 2, "label_name": "bird"},
        {"label": 1, "label_name": "automobile"},
    ]
    assert (train.name, train.file(0)) == (f"torchvision:CIFAR10?root={tmp_path}", tmp_path)
    test = open_training_source(Path(f"torchvision:CIFAR10?root={tmp_path}&train=false"))
    assert keys(test) == ["CIFAR10/test/0", "CIFAR10/test/1"]
    assert np.array_equal(pixels(test), drawn["test_batch"])
    for number in (-1, 2):
        with pytest.raises(IndexError):
            test.read(number)


def test_gray_images_are_png_with_one_channel(tmp_path: Path) -> None:
    drawn = write_mnist(tmp_path)
    source = open_training_source(f"torchvision:MNIST?root={tmp_path}")
    with Image.open(io.BytesIO(source.read(1))) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), drawn[1])
    assert np.array_equal(np.stack(pixels(source))[..., 2], drawn)
    assert source.metadata(2) == {"label": 2, "label_name": "2 - two"}


def test_image_folder_yields_the_files_own_bytes(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        draw_folder(tmp_path / name, 2)
    source = open_training_source(f"torchvision:ImageFolder?root={tmp_path}")
    assert keys(source) == ["cat/000.jpg", "cat/001.jpg", "dog/000.jpg", "dog/001.jpg"]
    assert contents(source) == [(tmp_path / key).read_bytes() for key in keys(source)]
    assert source.metadata(3) == {"folder": "dog", "label": 1, "label_name": "dog"}
    assert source.file(0) == tmp_path / "cat/000.jpg"


def test_datasets_with_separate_file_and_label_lists_work(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "food-101" / "images" / "pie", 2)
    (tmp_path / "food-101" / "meta").mkdir()
    for split, name in (("train", "000"), ("test", "001")):
        (tmp_path / "food-101" / "meta" / f"{split}.json").write_text(f'{{"pie": ["pie/{name}"]}}')
    source = open_training_source(f"torchvision:Food101?root={tmp_path}&split=test")
    assert keys(source) == ["food-101/images/pie/001.jpg"]
    assert contents(source) == [(folder / "001.jpg").read_bytes()]
    assert source.metadata(0) == {"folder": "food-101/images/pie", "label": 0, "label_name": "pie"}


def test_options_are_parsed_as_the_class_expects() -> None:
    source = open_training_source("torchvision:FakeData?size=3&num_classes=2")
    assert len(source) == 3
    assert keys(source)[0] == "FakeData/num_classes=2/size=3/0"
    assert source.metadata(0) == {}
    assert decode(source.read(2)).pixels.shape == (224, 224, 3)
    with refused("a similar one is size."):
        open_training_source("torchvision:FakeData?sizes=3")


def test_parts_of_a_dataset_have_different_keys(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("letters", "digits"):
        monkeypatch.setattr(datasets.EMNIST, "_check_exists", lambda _self: True)
        (tmp_path / "EMNIST" / "raw").mkdir(parents=True, exist_ok=True)
        write_mnist(tmp_path, "EMNIST")
        for file in (tmp_path / "EMNIST" / "raw").glob("t*-ubyte"):
            kind, rest = file.name.split("-", 1)
            file.rename(
                file.with_name(f"emnist-{split}-{'train' if kind == 'train' else 'test'}-{rest}")
            )
        found = keys(
            open_training_source(f"torchvision:EMNIST?root={tmp_path}&split={split}&train=true")
        )
        assert found == [f"EMNIST/{split}/train/{number}" for number in range(3)]


def test_missing_files_are_refused_with_how_to_download_them(tmp_path: Path) -> None:
    with refused(
        f"cannot be opened in {tmp_path} (",
        "download it with download=true, or name its folder",
    ):
        open_training_source(f"torchvision:CIFAR10?root={tmp_path}")
    with refused(f"cannot be opened in {tmp_path} (", "; name its folder with root=FOLDER."):
        open_training_source(f"torchvision:ImageFolder?root={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_unless_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: Any
) -> None:
    asked: list[Path] = []

    def download(self: Any) -> None:
        asked.append(Path(self.root))
        write_mnist(Path(self.root))

    monkeypatch.setattr(datasets.MNIST, "download", download)
    for options in ("", "&download=false"):
        with refused("download=true"):
            open_training_source(f"torchvision:MNIST?root={tmp_path}/new{options}")
    assert asked == []
    assert len(open_training_source(f"torchvision:MNIST?root={tmp_path}/new&download=true")) == 3
    assert asked == [tmp_path / "new"]


def test_missing_network_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: Any
) -> None:
    def download(_self: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    with refused("cannot be downloaded (<urlopen error no route>)", error=EnvironmentProblem):
        open_training_source(f"torchvision:CIFAR10?root={tmp_path}&download=true")


def test_root_is_the_cache_folder_or_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    write_mnist(tmp_path / "cache" / "torchvision")
    write_mnist(tmp_path / "data", count=4)
    assert len(open_training_source("torchvision:MNIST")) == 3
    assert len(open_training_source("torchvision:MNIST?root=~/data")) == 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("CIFAR11", "does not name a dataset of torchvision; similar names are CIFAR10, "),
        ("", "does not name a dataset of torchvision; see its documentation."),
        ("VisionDataset", "does not name a dataset of torchvision"),
        ("wrap_dataset_for_transforms_v2", "does not name a dataset of torchvision"),
        (
            "CIFAR10?trian=true",  # quoted
            "torchvision has no option 'trian' here; a similar one is train.",
        ),
        ("CIFAR10?transform=x", "its options are: root, train, download."),
        ("CIFAR10?train", "contains 'train'; write it as option=value."),
        (
            "CocoDetection?root=x",
            "lacks what torchvision requires: annFile; add annFile=VALUE.",
        ),
        ("FakeData?size=0", "has no images."),
    ],
)
def test_what_torchvision_does_not_have_is_refused(spec: str, words: str) -> None:
    with refused(f"torchvision:{spec}", words):
        open_training_source(f"torchvision:{spec}")


def test_damaged_dataset_and_damaged_image_are_refused(
    tmp_path: Path,
) -> None:
    write_mnist(tmp_path)
    source = open_training_source(
        f"torchvision:MNIST?root={tmp_path}", limits=ImageLimits(max_bytes=10)
    )
    with refused("MNIST/train/0 has ", "bytes, more than the limit of 10."):
        source.read(0)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"")
    with refused(f"torchvision:MNIST?root={tmp_path} cannot be opened"):
        open_training_source(f"torchvision:MNIST?root={tmp_path}")
    folder = draw_folder(tmp_path / "caltech101" / "101_ObjectCategories" / "cat", 2)
    for name in ("101_ObjectCategories/BACKGROUND_Google", "Annotations/cat"):
        (tmp_path / "caltech101" / name).mkdir(parents=True)
    for number in range(2):
        (folder / f"00{number}.jpg").rename(folder / f"image_000{number + 1}.jpg")
    (folder / "image_0002.jpg").write_bytes(b"no image")
    source = open_training_source(f"torchvision:Caltech101?root={tmp_path}")
    assert decode(source.read(0)).pixels.shape == (60, 80, 3)
    with refused("Caltech101/1 cannot be read (UnidentifiedImageError: "):
        source.read(1)


@pytest.mark.usefixtures("all_cores")
def test_dataset_can_be_read_by_threads_and_workers(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=9)
    draw_folder(tmp_path / "p" / "a", 9)
    for options in (f"MNIST?root={tmp_path}", f"ImageFolder?root={tmp_path}/p"):
        source = open_training_source(f"torchvision:{options}")
        copy = pickle.loads(pickle.dumps(source))
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(copy.read, range(9))) == contents(source)
        numbers: DataLoader[Any] = DataLoader(
            range(9),  # type: ignore[arg-type]
            batch_size=3,
            num_workers=2,
            collate_fn=partial(read_all, source),
        )
        assert [data for batch in numbers for data in batch] == contents(source)


def test_other_specs_are_opened_by_open_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "p", 2)
    assert keys(open_training_source(tmp_path / "p")) == keys(open_source(tmp_path / "p"))
    with refused("missing does not exist"):
        open_training_source("missing")
    draw_folder(tmp_path / "torchvision:mine", 1)
    monkeypatch.chdir(tmp_path)
    assert keys(open_training_source("torchvision:mine")) == ["000.jpg"]


def test_runtime_refuses_torchvision_without_loading_torch() -> None:
    program = (
        "import sys\n"
        "from featkit.sources import open_source\n"
        "try: open_source('torchvision:CIFAR10?root=x')\n"
        "except Exception as error: print(type(error).__name__, error, 'torch' in sys.modules)"
    )
    status, out, error = run_python(program)
    assert (status, error) == (0, "")
    assert out.startswith(
        "InputError torchvision:CIFAR10?root=x needs torch and can only be read by featkit train; "
    )
    assert out.endswith("False\n")


def test_column_is_refused_if_the_dataset_has_none(tmp_path: Path) -> None:
    draw_folder(tmp_path / "cat", 1)
    spec = f"torchvision:ImageFolder?root={tmp_path}"
    with refused(
        f"--column image applies to Parquet files and data sets only, and {spec} has none",
        "leave it out.",
    ):
        open_training_source(spec, selection=Selection(column="image"))
    assert (
        len(open_training_source(spec, selection=Selection(column="image"), check_column=False))
        == 1
    )
