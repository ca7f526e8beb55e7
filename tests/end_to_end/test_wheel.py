"""The wheel as a user gets it: built from this tree, installed into an environment that has nothing
else of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from featkit._version import __version__
from featkit.modelfile import read_manifest
from featkit.models import default_model_path
from tests.images import draw_image

ROOT = Path(__file__).parents[2]
PACKAGES = ("featkit", "featkit_train", "featkit_export", "featkit_demo")


def run(*command: str | Path, cwd: Path) -> str:
    """Return the output of a command that cannot see this checkout; fail with it on an error."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation: the build backend is one of the development tools, and nothing is
    fetched."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_a_wheel_holds_four_packages_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES, f"featkit-{__version__}.dist-info"}
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    recipes = [
        f"featkit_train/recipes/{path.name}"
        for path in (ROOT / "train/featkit_train/recipes").glob("*.yaml")
    ]
    assert "featkit_train/recipes/tiny.yaml" in recipes
    needed = ("featkit/models/featkit-tiny.onnx", "featkit_demo/static/search.js", *recipes)
    assert [name for name in needed if name not in names] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 12e6


def test_a_wheel_works_in_an_environment_that_has_nothing_else(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=shutil.which("uv") is None)
    python = home / "bin" / "python"
    uv = shutil.which("uv")
    install: list[str | Path] = (
        [uv, "pip", "install", "-q", "--python", python]
        if uv
        else [python, "-m", "pip", "install", "-q"]
    )
    run(*install, "-c", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=tmp_path)
    assert "embed" in run(home / "bin" / "featkit", "--help", cwd=tmp_path)
    assert run(home / "bin" / "featkit", "--version", cwd=tmp_path).strip().endswith(__version__)
    draw_image(0).save(tmp_path / "one.jpg")
    printed = run(
        home / "bin" / "featkit", "embed", "one.jpg", "--out", "emb", "--json", cwd=tmp_path
    )
    assert json.loads(printed)["embedded_now"] == 1
    width = read_manifest(default_model_path()).width
    program = (
        "import featkit; v = featkit.Embedder().embed(['one.jpg']); print(v.shape, v.dtype,"
        " round(float(v[0] @ v[0]), 4))"
    )
    assert run(python, "-c", program, cwd=tmp_path).strip() == f"(1, {width}) float32 1.0"
