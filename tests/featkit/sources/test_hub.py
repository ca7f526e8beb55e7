"""`hf:NAME[/CONFIG][:SPLIT]`: data sets loaded by the datasets library, from folders, since tests
have no network."""

from __future__ import annotations

import email.message
import json
import pickle
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.errors import EnvironmentProblem
from featkit.images import ImageLimits
from featkit.sources import open_source
from featkit.sources.hub import HubDataset
from tests.data import needs_shared_data, shared_data
from tests.featkit.sources.files import contents, keys
from tests.featkit.sources.hugging_face import (
    draw_images,
    expected_metadata,
    keep_cache_in,
    library,
    make_dataset,
)
from tests.featkit.sources.test_saved import contents_in_another_process
from tests.images import draw_folder
from tests.processes import run_python
from tests.sentences import refused


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_cache_in(tmp_path_factory.mktemp("cache"), monkeypatch)


def write_repository(folder: Path) -> list[bytes]:
    """Write a folder in the Hub's Parquet layout: four rows of train in two files, one of test.
    Return the images."""
    images = draw_images(5)
    whole = make_dataset(images)
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate([range(2), range(2, 4)]):
        whole.select(rows).to_parquet(folder / "data" / f"train-0000{number}-of-00002.parquet")
    whole.select([4]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return images


def test_rows_of_a_split_are_items_with_label_names(tmp_path: Path) -> None:
    images = write_repository(tmp_path / "pets")
    spec = f"hf:{tmp_path}/pets:train"
    for given in (spec, Path(spec)):
        source = open_source(given)
        assert keys(source) == [f"pets/train/{number}" for number in range(4)]
        assert contents(source) == images[:4]
        assert [source.metadata(number) for number in range(4)] == [
            expected_metadata(number) for number in range(4)
        ]
        assert source.name == spec
        assert source.file(0).suffix == ".arrow"
    for number in (-1, 4):
        with pytest.raises(IndexError):
            source.read(number)


def test_splits_can_be_sliced_and_joined(tmp_path: Path) -> None:
    images = write_repository(tmp_path / "pets")
    assert contents(open_source(f"hf:{tmp_path}/pets:train[1:3]")) == images[1:3]
    joined = open_source(f"hf:{tmp_path}/pets:train+test")
    assert contents(joined) == images
    assert joined.key(4) == "pets/train+test/4"


def test_unnamed_or_missing_split_is_refused_with_a_list(
    tmp_path: Path,
) -> None:
    write_repository(tmp_path / "pets")
    name = f"hf:{tmp_path}/pets"
    with refused(name, f"has several splits; name one of train, test: {name}:train."):
        open_source(name)
    for split in ("valid", "valid[:10]", "train+valid"):
        with refused(name, "has no split 'valid'; name one of train, test: "):
            open_source(f"{name}:{split}")
    with refused(f"{name}:train[x]", "cannot be opened: "):
        open_source(f"{name}:train[x]")


def test_configuration_follows_the_name_of_the_data_set(
    tmp_path: Path,
) -> None:
    write_repository(tmp_path / "pets")
    assert open_source(f"hf:{tmp_path}/pets/default:test").key(0) == "pets/default/test/0"
    with refused(f"hf:{tmp_path}/pets/plain:test", "'plain' not found", "['default']"):
        open_source(f"hf:{tmp_path}/pets/plain:test")


def test_folder_by_class_gives_the_bytes_of_its_files(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        draw_folder(tmp_path / "pets" / "train" / name, 2)
    source = open_source(f"hf:{tmp_path}/pets:train")
    files = sorted((tmp_path / "pets").rglob("*.jpg"))
    assert contents(source) == [file.read_bytes() for file in files]
    assert [source.file(number) for number in range(4)] == files
    assert [source.metadata(number)["label_name"] for number in range(4)] == [
        "cat",
        "cat",
        "dog",
        "dog",
    ]
    files[0].unlink()
    with refused(files[0], "does not exist"):
        source.read(0)


def test_row_cannot_name_a_file_outside_its_data_set(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private", 1) / "000.jpg"
    (tmp_path / "pets").mkdir()
    paths = [str(private), f"{tmp_path}/pets/../private/000.jpg", "https://example.org/x.jpg", None]
    image = pa.array(
        [{"bytes": None, "path": path} for path in paths],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": image}), tmp_path / "pets" / "train.parquet")
    source = open_source(f"hf:{tmp_path}/pets")
    for number in range(4):
        with refused(f"pets/train/{number} has no image in its column image."):
            source.read(number)


def test_image_over_the_byte_limit_is_refused(tmp_path: Path) -> None:
    images = write_repository(tmp_path / "pets")
    with refused("pets/test/0 has ", f"{len(images[4])} bytes, more than the limit of 9."):
        open_source(f"hf:{tmp_path}/pets:test", limits=ImageLimits(max_bytes=9)).read(0)


def test_columns_without_images_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1], "url": ["x"]}), tmp_path / "train.parquet")
    with refused(
        f"hf:{tmp_path}", "has no column of images ({bytes, path} or binary) among: label, url."
    ):
        open_source(f"hf:{tmp_path}")


def test_file_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and a note PAR1")
    with refused(f"hf:{tmp_path} cannot be opened: "):
        open_source(f"hf:{tmp_path}")
    with refused("hf:/not/there", "cannot be opened: "):
        open_source("hf:/not/there")
    with refused("hf: does not name a data set", "hf:NAME:SPLIT"):
        open_source("hf:")


def test_name_that_cannot_be_fetched_blames_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_dataset(name: str, config: str | None, *, split: str | None) -> None:
        raise ConnectionError(f"no way\nto {name} {config} {split}")

    monkeypatch.setattr(library(), "load_dataset", load_dataset)
    for spec, asked in (
        ("hf:mnist", "mnist None"),
        ("hf:uoft-cs/cifar10:train", "uoft-cs/cifar10 None"),
        ("hf:uoft-cs/cifar100/plain_text:test", "uoft-cs/cifar100 plain_text"),
    ):
        with refused(
            f"{spec} cannot be fetched (no way to {asked} None)",
            "hf:FOLDER",
            error=EnvironmentProblem,
        ):
            open_source(spec)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "hf auth login"),
        (403, "accept its license"),
        (429, "no further requests"),
        (503, "an internal error"),
        (None, "a page"),
    ],
)
def test_answer_of_the_hub_is_reported(
    status: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason: Exception = json.JSONDecodeError("no", "<html>", 0)
    if status is not None:
        reason = urllib.error.HTTPError(
            "https://hub/a", status, "no", email.message.Message(), None
        )

    def load_dataset(_name: str, _config: str | None, *, split: str | None) -> None:
        assert split is None
        raise ConnectionError("Couldn't reach the Hub") from reason

    monkeypatch.setattr(library(), "load_dataset", load_dataset)
    with refused(
        "hf:a/b:train cannot be fetched, since the hub", said, "hf:FOLDER", error=EnvironmentProblem
    ):
        open_source("hf:a/b:train")


def test_unreadable_json_in_a_folder_does_not_blame_the_network(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("<html>")
    with refused(f"hf:{tmp_path}", "cannot be opened"):
        open_source(f"hf:{tmp_path}")


def test_keys_begin_with_the_full_name_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"train": make_dataset(draw_images(2)), "test": make_dataset(draw_images(1))}
    monkeypatch.setattr(library(), "load_dataset", lambda *_names, **_options: both)
    assert keys(open_source("hf:uoft-cs/cifar10:train")) == [
        "uoft-cs/cifar10/train/0",
        "uoft-cs/cifar10/train/1",
    ]
    assert keys(open_source("hf:uoft-cs/cifar100/plain_text:test")) == [
        "uoft-cs/cifar100/plain_text/test/0"
    ]


def test_missing_library_names_the_extra_to_install() -> None:
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from featkit.sources import open_source\n"
        "try: open_source('hf:uoft-cs/cifar10:train')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    expected = (
        "EnvironmentProblem datasets is not installed; run: pip install 'featkit[datasets]'.\n"
    )
    assert run_python(program) == (0, expected, "")


def test_loading_reports_to_no_server_and_shows_no_bars_in_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_repository(tmp_path / "pets")
    capfd.readouterr()
    open_source(f"hf:{tmp_path}/pets:test")
    assert capfd.readouterr() == ("", "")
    assert library().config.HF_UPDATE_DOWNLOAD_COUNTS is False
    assert not library().are_progress_bars_disabled()


def test_existing_path_comes_before_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "hf:mine", 1)
    monkeypatch.chdir(tmp_path)
    assert keys(open_source("hf:mine")) == ["000.jpg"]


def test_data_set_is_read_from_threads_pickles_and_forks(tmp_path: Path) -> None:
    images = write_repository(tmp_path / "pets")
    source = open_source(f"hf:{tmp_path}/pets:train")
    copy = pickle.loads(pickle.dumps(source))
    assert isinstance(copy, HubDataset)
    order = [number * 3 % 4 for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, order)) == [images[number] for number in order]
    if sys.platform == "linux":
        assert contents_in_another_process(source) == images[:4]


@needs_shared_data
def test_real_parquet_rows_are_equal_by_every_reader(tmp_path: Path) -> None:
    shared = shared_data()
    assert shared is not None
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "test-00000.parquet").symlink_to(
        shared / "cifar10" / "test-00000.parquet"
    )
    straight, through = open_source(tmp_path / "cifar"), open_source(f"hf:{tmp_path}/cifar:test")
    library().load_dataset(str(tmp_path / "cifar"), split="test").save_to_disk(tmp_path / "saved")
    saved = open_source(tmp_path / "saved")
    assert len(straight) == len(through) == len(saved) == 5000
    for number in range(0, 5000, 7):
        assert straight.read(number) == through.read(number) == saved.read(number)
        assert straight.metadata(number) == through.metadata(number) == saved.metadata(number)
