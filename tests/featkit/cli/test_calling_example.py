"""The example that `featkit inspect` prints of a model file: run as it stands, it gives featkit's
own vector."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from featkit.embedder import Embedder
from featkit.modelfile import read_manifest
from featkit_export.seal import seal
from tests.commands import run_featkit
from tests.images import draw_image
from tests.model_files import make_model_file
from tests.processes import run_python

ORIENTATION = 0x0112
WITHOUT_FEATKIT = """
import os, runpy, sys
sys.modules["featkit"] = None  # so that its import fails
os.chdir(sys.argv[1])
runpy.run_path("example.py", run_name="__main__")
"""


def printed_example(model: Path) -> str:
    """Return the script below the table, after checking that the JSON has the same."""
    said = run_featkit("inspect", model)
    assert (said.code, said.error) == (0, "")
    example = said.out.split("Pillow only:\n\n", maxsplit=1)[1].removesuffix("\n")
    assert json.loads(run_featkit("inspect", model, "--json").out)["example"] == example
    return example


def photo_like(seed: int, *, height: int, width: int) -> Image.Image:
    """A drawn image whose shapes fill it at any size."""
    return draw_image(seed).resize((width, height), Image.Resampling.BICUBIC)


def save(folder: Path, image: Image.Image, format: str, **options: Any) -> Path:
    """photo.jpg, of whatever format."""
    image.save(folder / "photo.jpg", format, **options)
    return folder / "photo.jpg"


def remake(
    source: Path,
    path: Path,
    *,
    geometry: dict[str, Any] | None = None,
    fixed: bool = False,
    **changes: Any,
) -> Path:
    """The same network with another manifest; fixed: which takes the geometry's size only."""
    model, manifest = onnx.load(source), read_manifest(source)
    manifest = dataclasses.replace(
        manifest, geometry=dataclasses.replace(manifest.geometry, **geometry or {}), **changes
    )
    if fixed:
        manifest = dataclasses.replace(
            manifest, fixed_size=(manifest.geometry.height, manifest.geometry.width)
        )
        for place, side in enumerate(manifest.fixed_size or (), start=1):
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
    seal(model, manifest, path)
    return path


def check_example(model: Path, photo: Path) -> np.ndarray:
    """Run the example in a process without featkit, next to the photo, and compare its vector with
    Embedder's."""
    (photo.parent / "example.py").write_text(printed_example(model), encoding="utf-8")
    status, out, error = run_python(WITHOUT_FEATKIT, photo.parent)
    assert (status, error) == (0, "")
    vector = np.array(out.split(), np.float64)
    embedder = Embedder(model, backend="onnxruntime")
    assert embedder.prepare(photo).std() > 5  # of a flat image every crop would be alike
    expected = embedder.embed(photo)[0]
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    return vector


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"resize_to": 37, "interpolation": "bicubic"},
        {"resize": "stretch", "height": 24, "width": 40, "interpolation": "lanczos"},
        {"resize": "cover", "height": 24, "width": 40},
        {"resize_to": 48, "height": 40, "width": 16},
        {"resize_to": 43, "rounding": "down"},
        {"resize_to": 43, "rounding": "even"},
        {"resize": "stretch_then_crop", "resize_to": 41},
        {"resize": "stretch_then_crop", "resize_to": 41, "rounding": "even"},
        {"resize": "cover_then_crop", "height": 24, "width": 40, "resize_to": 47},
        {"resize": "cover", "height": 24, "width": 40, "rounding": "even"},
    ],
)
def test_the_example_does_each_resize_and_crop(
    model: Path, tmp_path: Path, geometry: dict[str, Any]
) -> None:
    path = remake(model, tmp_path / "m.onnx", geometry=geometry)
    wide = check_example(path, save(tmp_path, photo_like(1, height=300, width=411), "PNG"))
    tall = check_example(path, save(tmp_path, photo_like(1, height=411, width=300), "PNG"))
    assert np.abs(wide - tall).max() > 1e-4  # another photo has another vector


@pytest.mark.parametrize(
    ("format", "image", "options"),
    [
        ("JPEG", photo_like(2, height=1600, width=1211), {"quality": 90}),  # decoded at a quarter
        ("JPEG", photo_like(3, height=300, width=2000), {}),
        ("JPEG", photo_like(4, height=900, width=700).convert("L"), {}),
        ("PNG", photo_like(5, height=900, width=700).convert("L"), {}),
        ("PNG", photo_like(6, height=90, width=50).quantize(16), {}),
        ("JPEG", photo_like(7, height=20, width=33), {}),  # smaller than the model's size
        ("WEBP", photo_like(8, height=600, width=400), {}),
    ],
)
def test_the_example_decodes_as_featkit_does(
    model: Path, tmp_path: Path, format: str, image: Image.Image, options: dict[str, Any]
) -> None:
    check_example(model, save(tmp_path, image, format, **options))


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_the_example_turns_a_photo_upright(model: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    check_example(model, save(tmp_path, photo_like(9, height=800, width=600), "JPEG", exif=exif))


def test_batch_dependent_file_is_called_with_one_photo(
    tmp_path: Path,
) -> None:
    model = make_model_file(tmp_path / "m.onnx", batch_invariant=False)
    assert "one photo per call" in printed_example(model)
    check_example(model, save(tmp_path, photo_like(10, height=100, width=300), "PNG"))


def test_a_file_of_one_size_is_called_with_it(model: Path, tmp_path: Path) -> None:
    path = remake(model, tmp_path / "m.onnx", geometry={"resize_to": 40}, fixed=True)
    check_example(path, save(tmp_path, photo_like(11, height=500, width=300), "PNG"))


def test_a_path_with_quotes_and_brackets_is_just_a_path(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's :cat: [red]\\"
    folder.mkdir()
    path = remake(model, folder / 'm".onnx')
    check_example(path, save(tmp_path, photo_like(12, height=60, width=80), "PNG"))
