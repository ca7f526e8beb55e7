"""Images to unit vectors: the same ones however an image is handed over, in whatever batch and
from whatever thread."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import featkit
from featkit.backends import Cancel, Cancelled, Run
from featkit.embedder import Embedder
from featkit.images import ImageLike, ImageLimits
from tests.data import needs_shared_data, shared_data
from tests.featkit.backends.engines import OPENVINO_BF16, OPENVINO_FP32, needs_bf16, needs_openvino
from tests.featkit.backends.graphs import make_layered_file
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file
from tests.sentences import refused

COUNT = 13


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that takes 32×32 pixels in patches of 8 and gives 16 numbers."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def lonely_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph in a file that says that its vectors depend on the batch."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx", batch_invariant=False)


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    """The embedder of that model."""
    return Embedder(model, threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """COUNT images as PNG files, so that every way to hand them over has the same pixels."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        draw_image(number).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


class Spy:
    """A session's calls are counted and passed on."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        run = embedder._backend.run

        def counted(images: np.ndarray, *, cancel: Cancel | None = None) -> dict[str, np.ndarray]:
            self.sizes.append(len(images))
            return run(images, cancel=cancel)

        monkeypatch.setattr(embedder._backend, "run", counted)


def by_hand(model: Path, images: list[Image.Image]) -> np.ndarray:
    """Vectors by Pillow and a plain session: the shorter side to 32, the center of it, one image
    a call."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    vectors = []
    for image in images:
        box = ((image.width - image.height) / 2, 0, (image.width + image.height) / 2, image.height)
        square = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
        vectors.append(session.run(["embedding"], {"images": np.asarray(square)[None]})[0][0])
    return np.stack(vectors)


def test_vectors_are_those_of_a_plain_session(
    model: Path, embedder: Embedder, files: list[Path]
) -> None:
    found = embedder.embed(files)
    expected = by_hand(model, [draw_image(number) for number in range(COUNT)])
    assert found.shape == (COUNT, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-5)
    between = np.linalg.norm(found[:, None] - expected[None], axis=2)
    assert between.argmin(axis=1).tolist() == list(range(COUNT))
    assert (between + 9 * np.eye(COUNT)).min() > 0.05


def test_infer_is_a_plain_session_to_the_last_bit(model: Path, embedder: Embedder) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(embedder.infer(images), session.run(None, {"images": images})[0])


def test_every_way_to_hand_images_over_gives_the_same_vectors(
    embedder: Embedder, files: list[Path]
) -> None:
    expected = embedder.embed(files)
    images = [draw_image(number) for number in range(COUNT)]
    arrays = [np.asarray(image) for image in images]
    mixed: list[ImageLike] = [
        str(files[0]),
        files[1],
        files[2].read_bytes(),
        images[3],
        arrays[4],
        *files[5:],
    ]
    ways: dict[str, Iterable[ImageLike]] = {
        "text": [str(file) for file in files],
        "bytes": [file.read_bytes() for file in files],
        "images": images,
        "opened files": [Image.open(io.BytesIO(file.read_bytes())) for file in files],
        "arrays": arrays,
        "one array": np.stack(arrays),
        "an iterator": iter(files),
        "a generator": (image for image in images),
        "a tuple": tuple(images),
        "a mixture": mixed,
    }
    for way, drawn_images in ways.items():
        np.testing.assert_array_equal(embedder.embed(drawn_images), expected, err_msg=way)


def test_a_single_image_is_one_row(embedder: Embedder, files: list[Path]) -> None:
    expected = embedder.embed(files[:1])
    singles: list[ImageLike] = [
        files[0],
        str(files[0]),
        files[0].read_bytes(),
        draw_image(0),
        np.asarray(draw_image(0)),
    ]
    for single in singles:
        np.testing.assert_array_equal(embedder.embed(single), expected)
    gray = np.asarray(draw_image(0).convert("L"))
    np.testing.assert_array_equal(embedder.embed(gray), embedder.embed(Image.fromarray(gray)))


def test_open_files_buffers_and_rows_are_images(embedder: Embedder, files: list[Path]) -> None:
    data, expected = files[0].read_bytes(), embedder.embed(files[:1])
    singles: list[ImageLike] = [
        io.BytesIO(data),
        bytearray(data),
        memoryview(data),
        {"bytes": data, "path": "x.png"},
    ]
    for single in singles:
        np.testing.assert_array_equal(embedder.embed(single), expected)
        np.testing.assert_array_equal(embedder.embed([single]), expected)
    with files[0].open("rb") as file:
        np.testing.assert_array_equal(embedder.embed(file), expected)
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    np.testing.assert_array_equal(embedder.embed(rows), embedder.embed(files))
    np.testing.assert_array_equal(
        embedder.embed(np.array([str(file) for file in files])), embedder.embed(files)
    )
    np.testing.assert_array_equal(
        embedder.embed(dict.fromkeys(files).keys()), embedder.embed(files)
    )


class Tensor:
    """A stand-in for a torch tensor as featkit sees it: iterable over channels."""

    __module__ = "torch"
    shape = (3, 8, 8)

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "image 0 is None; give a path, bytes, a Pillow image or an array."),
        (7, "image 0 is an int; give"),
        (Tensor(), "image 0 is a Tensor of shape (3, 8, 8); give a NumPy array"),
        ([None], "image 0 is None; give"),
        ([["a.jpg", "b.jpg"]], "image 0 is a list; give"),
        ([Tensor()], "image 0 is a Tensor of shape (3, 8, 8)"),
        (
            {"image": b"", "label": 3},
            "image 0 is a mapping with image, label instead of `bytes` or `path`",
        ),
        (
            np.zeros((2, 8, 8, 3), np.float32),
            "image 0 is float32 of shape (8, 8, 3); an array must be uint8",
        ),
        ("missing.jpg", "missing.jpg does not exist."),
        (["missing.jpg"], "missing.jpg does not exist."),
        ("https://example.org/x.jpg", "https://example.org/x.jpg is a web address"),
        ([{"bytes": b"a note", "path": "cats/x.jpg"}], "cats/x.jpg is not an image"),
        (io.StringIO("a.jpg"), "image 0 is open as text"),
    ],
)
def test_what_is_no_image_is_refused_by_name(embedder: Embedder, images: Any, words: str) -> None:
    with refused(words):
        embedder.embed(images)


def test_a_image_turned_by_hand_is_not_turned_again(embedder: Embedder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = draw_image(2)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "x.png", exif=exif)
    expected = embedder.embed(upright)
    np.testing.assert_array_equal(embedder.embed(tmp_path / "x.png"), expected)
    np.testing.assert_array_equal(embedder.embed(Image.open(tmp_path / "x.png")), expected)
    np.testing.assert_array_equal(
        embedder.embed(Image.open(tmp_path / "x.png").rotate(-90, expand=True)), expected
    )


def test_images_opened_one_by_one_need_no_more_files_than_one(
    embedder: Embedder, files: list[Path]
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    found = embedder.embed(Image.open(file) for file in files)
    np.testing.assert_array_equal(found, embedder.embed(files))
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_no_images_are_no_rows(embedder: Embedder) -> None:
    nothings: list[Iterable[ImageLike]] = [[], iter(()), np.zeros((0, 32, 32, 3), np.uint8)]
    for nothing in nothings:
        found = embedder.embed(nothing)
        assert found.shape == (0, 16)
        assert found.dtype == np.float32
    assert embedder.infer(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 16)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 13, 100])
def test_the_size_of_a_batch_changes_no_vector(
    model: Path, embedder: Embedder, files: list[Path], batch_size: int
) -> None:
    other = Embedder(model, threads=1, batch_size=batch_size)
    assert other.batch_size == min(batch_size, 512 // 16)  # as many patches as fill a call
    np.testing.assert_allclose(other.embed(files), embedder.embed(files), rtol=0, atol=2e-7)
    alone = np.concatenate([other.embed(file) for file in files])
    np.testing.assert_allclose(alone, embedder.embed(files), rtol=0, atol=2e-7)


def test_batches_are_full_but_the_last(
    model: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(model, threads=1, batch_size=5)
    spy = Spy(embedder, monkeypatch)
    embedder.embed(iter(files))
    embedder.infer(np.zeros((11, 32, 32, 3), np.uint8))
    assert spy.sizes == [5, 5, 3, 5, 5, 1]


def test_a_model_whose_batches_matter_runs_one_image_a_call(
    lonely_model: Path, embedder: Embedder, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lonely = Embedder(lonely_model, threads=1, batch_size=8)
    spy = Spy(lonely, monkeypatch)
    np.testing.assert_allclose(lonely.embed(files), embedder.embed(files), rtol=0, atol=2e-7)
    lonely.infer(np.zeros((4, 32, 32, 3), np.uint8))
    assert spy.sizes == [1] * (COUNT + 4)


def test_images_are_read_a_batch_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(model, threads=1, batch_size=4)
    spy, ahead = Spy(embedder, monkeypatch), 0

    def drawn() -> Iterator[Image.Image]:
        nonlocal ahead
        for number in range(50):
            ahead = max(ahead, number - sum(spy.sizes))
            yield draw_image(number)

    embedder.embed(drawn())
    assert (sum(spy.sizes), ahead) == (50, 3)


def test_eight_threads_get_what_one_gets(embedder: Embedder, files: list[Path]) -> None:
    expected = [embedder.embed(file) for file in files]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(embedder.embed, files * 6))
        blocks = list(threads.map(lambda _number: embedder.embed(files), range(16)))
    for place, vectors in enumerate(found):
        np.testing.assert_array_equal(vectors, expected[place % COUNT])
    for block in blocks:
        np.testing.assert_array_equal(block, embedder.embed(files))


def test_images_of_any_size_are_brought_to_the_models_size(embedder: Embedder) -> None:
    for height, width in ((60, 80), (333, 200), (32, 32), (20, 3000)):
        image = draw_image(1, height=height, width=width)
        prepared = embedder.prepare(image)
        assert prepared.shape == (32, 32, 3)
        assert prepared.dtype == np.uint8
        np.testing.assert_array_equal(embedder.embed(image), embedder.infer(prepared[None]))
    assert embedder.embed(Image.new("L", (1, 1), 200)).shape == (1, 16)


def test_a_large_jpeg_gives_nearly_the_vector_of_its_full_decode(
    embedder: Embedder, tmp_path: Path
) -> None:
    file = draw_folder(tmp_path, 1, height=1500, width=2100) / "000.jpg"
    decoded = embedder.decode(file)
    assert decoded.pixels.shape[0] < 1500
    assert (decoded.height, decoded.width) == (1500, 2100)
    with Image.open(file) as image:
        full = np.asarray(image)
    assert (embedder.embed(file) @ embedder.embed(full).T).item() > 0.999


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            (2, 33, 32, 3),
            "The height is 33, not a multiple of the model's patch of 8; use 32 or 40.",
        ),
        (
            (2, 32, 47, 3),
            "The width is 47, not a multiple of the model's patch of 8; use 40 or 48.",
        ),
        ((2, 5, 32, 3), "The height is 5, not a multiple of the model's patch of 8; use 8."),
        ((2, 32, 0, 3), "The width is 0, not a multiple of the model's patch of 8; use 8."),
        (
            (32, 32, 3),
            "The model expects uint8 (N, H, W, 3), not uint8 (32, 32, 3); use `prepare`.",
        ),
        (
            (1, 3, 32, 32),
            "The model expects uint8 (N, H, W, 3), not uint8 (1, 3, 32, 32); use `prepare`.",
        ),
    ],
)
def test_infer_refuses_other_shapes_with_the_nearest_that_work(
    embedder: Embedder, shape: tuple[int, ...], words: str
) -> None:
    with refused(words):
        embedder.infer(np.zeros(shape, np.uint8))


def test_infer_refuses_other_numbers(embedder: Embedder) -> None:
    with refused(
        "The model expects uint8 (N, H, W, 3), not float32 (1, 32, 32, 3); use `prepare`."
    ):
        embedder.infer(np.zeros((1, 32, 32, 3), np.float32))


def test_the_image_that_cannot_be_read_is_named(
    embedder: Embedder, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("a note")
    with refused(tmp_path / "text.jpg", "is not an image"):
        embedder.embed([files[0], tmp_path / "text.jpg", files[1]])
    with refused(tmp_path / "missing.jpg", "does not exist"):
        embedder.embed(str(tmp_path / "missing.jpg"))
    with refused("image 2 is not an image"):
        embedder.embed([files[0], draw_image(1), b"a note"])
    with refused("image 1 is float64 of shape (4, 4, 3)"):
        embedder.embed([draw_image(1), np.zeros((4, 4, 3))])
    with refused("x/y.jpg is empty"):
        embedder.decode(b"", name="x/y.jpg")


def test_the_limits_are_those_given(model: Path, files: list[Path]) -> None:
    strict = Embedder(model, threads=1, limits=ImageLimits(max_pixels=4000))
    for embedder in (strict, strict.with_threads(2)):
        with refused(files[0], "has 4,800 pixels (80×60), more than the limit of 4,000"):
            embedder.embed(files[0])


def test_other_threads_leave_all_else_as_it_was(model: Path, files: list[Path]) -> None:
    embedder = Embedder(model, threads=1, batch_size=3)
    other = embedder.with_threads(2)
    assert embedder.with_threads(1) is embedder
    assert (other.threads, other.batch_size, other.fingerprint) == (2, 3, embedder.fingerprint)
    np.testing.assert_allclose(other.embed(files), embedder.embed(files), rtol=0, atol=2e-7)


def test_a_cancelled_call_ends(embedder: Embedder) -> None:
    cancel = Cancel()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    embedder.infer(images, cancel=cancel)
    cancel.set()
    with pytest.raises(Cancelled):
        embedder.infer(images, cancel=cancel)


@needs_openvino
def test_openvino_gives_the_vectors_of_onnxruntime(
    model: Path, embedder: Embedder, files: list[Path]
) -> None:
    other = Embedder(model, backend="openvino", precision="fp32", threads=1)
    assert (other.run, other.backend_name) == (OPENVINO_FP32, "openvino CPU fp32")
    np.testing.assert_allclose(other.embed(files), embedder.embed(files), rtol=0, atol=1e-6)


@needs_bf16
def test_bf16_gives_nearly_the_vectors_of_fp32(
    model: Path, embedder: Embedder, files: list[Path]
) -> None:
    other = Embedder(model, precision="bf16", threads=1)
    assert (other.run, other.backend_name) == (OPENVINO_BF16, "openvino CPU bf16")
    found, expected = other.embed(files), embedder.embed(files)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-5)
    assert 0.998 < np.einsum("nd,nd->n", found, expected).min() < 1 - 1e-7


@needs_openvino
def test_other_threads_keep_the_engine_and_the_precision(model: Path, files: list[Path]) -> None:
    first = Embedder(model, backend="openvino", precision="fp32", threads=1)
    assert first.with_threads(2).run == first.run
    assert first.with_threads(2).with_threads(1).run == first.run
    np.testing.assert_allclose(
        first.with_threads(2).embed(files), first.embed(files), rtol=0, atol=1e-6
    )


@needs_openvino
def test_another_run_is_another_session_of_the_same_model(model: Path, files: list[Path]) -> None:
    first = Embedder(model, backend="onnxruntime", threads=1, batch_size=3)
    other = first.with_run(OPENVINO_FP32)
    assert first.with_run(first.run) is first
    assert (first.run, other.run) == (Run("onnxruntime", "fp32"), OPENVINO_FP32)
    assert (other.threads, other.batch_size) == (1, 3)
    np.testing.assert_allclose(other.embed(files), first.embed(files), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "open_to_openvino", "open_to_onnxruntime"),
    [
        ({}, True, True),
        ({"backend": "onnxruntime"}, False, True),
        ({"precision": "fp32"}, False, True),
        ({"backend": "onnxruntime", "precision": "fp32"}, False, True),
    ],
)
def test_what_was_asked_for_leaves_the_rest_open(
    model: Path, asked: dict[str, str], open_to_openvino: bool, open_to_onnxruntime: bool
) -> None:
    embedder = Embedder(model, threads=1, **asked)  # type: ignore[arg-type]
    assert embedder.leaves_open(OPENVINO_BF16) is open_to_openvino
    assert embedder.leaves_open(Run("onnxruntime", "fp32")) is open_to_onnxruntime


def test_outputs_are_those_of_a_plain_session(tmp_path: Path) -> None:
    file = make_layered_file(tmp_path / "m.onnx")
    embedder = Embedder(file, threads=1, batch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)
    names = ["attention", "embedding", "patches"]
    expected = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        names, {"images": images}
    )
    found = embedder.outputs(images, names)
    assert list(found) == names
    for name, values in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(embedder.infer(images), found["embedding"])
    assert list(embedder.outputs(images, ["patches"])) == ["patches"]


def test_unknown_outputs_are_refused_listing_known_ones(tmp_path: Path, embedder: Embedder) -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with refused("has no output patches; choose from embedding."):
        embedder.outputs(images, ["embedding", "patches"])
    with refused("No output of", "choose from embedding."):
        embedder.outputs(images, [])
    other = Embedder(
        make_layered_file(tmp_path / "m.onnx", outputs=("embedding", "patches")), threads=1
    )
    with refused("has no output attention, tokens; choose from embedding, patches."):
        other.outputs(images, ["tokens", "attention"])
    with refused("There are no images to compute outputs for; give one or more."):
        other.outputs(images[:0], ["patches"])
    with refused("The height is 33, not a multiple"):
        other.outputs(np.zeros((1, 33, 32, 3), np.uint8), ["patches"])


def test_a_model_of_one_size_refuses_others_and_prepares_its_own(
    tmp_path: Path, files: list[Path]
) -> None:
    embedder = Embedder(make_layered_file(tmp_path / "m.onnx", fixed_size=(32, 40)), threads=1)
    assert embedder.embed(files).shape == (COUNT, 32)
    assert embedder.prepare(files[0]).shape == (32, 40, 3)
    with refused("m.onnx only takes images of 32×40 (height × width), not 40×32; resize them with"):
        embedder.infer(np.zeros((1, 40, 32, 3), np.uint8))


def test_it_says_what_it_is(model: Path, embedder: Embedder) -> None:
    assert (embedder.width, embedder.model_path) == (16, model)
    assert embedder.backend_name.startswith("onnxruntime ")
    assert embedder.fingerprint == embedder.manifest.fingerprint != ""
    assert featkit.Embedder is Embedder


def test_what_is_no_model_file_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("a note")
    with refused(tmp_path / "m.onnx", "is not a featkit model file"):
        Embedder(tmp_path / "m.onnx")
    with refused(tmp_path / "missing.onnx", "does not exist"):
        Embedder(tmp_path / "missing.onnx")
    with refused("threads is 0; use 1 or more."):
        Embedder(model, threads=0)
    with refused("batch_size is 0; use 1 or more."):
        Embedder(model, batch_size=0)


@needs_shared_data
def test_photographs_keep_their_vector_however_they_come(embedder: Embedder) -> None:
    folder = shared_data()
    assert folder is not None
    photos = sorted((folder / "photos").rglob("*.jpg"))[:5]
    assert photos
    expected = embedder.embed(photos)
    np.testing.assert_array_equal(
        embedder.embed([photo.read_bytes() for photo in photos]), expected
    )
    with ThreadPoolExecutor(4) as threads:
        found = np.concatenate(list(threads.map(embedder.embed, photos)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
