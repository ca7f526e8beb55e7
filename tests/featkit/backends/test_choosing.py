"""Which engine runs a model: what was asked for, else the fastest that gives the same vectors,
measured once a machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from featkit.backends import (
    BF16,
    Run,
    choose_run,
    offered_runs,
    open_backend,
    possible_runs,
    reference_run,
)
from featkit.backends import choosing as module
from featkit.backends.choosing import CACHE_FILE, LEAST_COSINE, Measured, images_per_call
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, InputError
from featkit.modelfile import Manifest, read_manifest
from featkit.models import default_model_path
from tests.featkit.backends.engines import (
    ONNXRUNTIME_FP32,
    OPENVINO_BF16,
    OPENVINO_FP32,
    needs_bf16,
    needs_openvino,
)
from tests.featkit.backends.graphs import make_layered_file
from tests.model_files import make_model_file
from tests.sentences import refused

NO_CACHE: dict[str, Any] = {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_layered_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, with no variable set for `auto` and a shorter measurement."""
    for name in ("FEATKIT_BACKEND", "FEATKIT_PRECISION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MEASURED_S", 0.05)
    return tmp_path / "cache" / CACHE_FILE


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[list[Run]]:
    """The runs of every measurement that is made."""
    made: list[list[Run]] = []
    measure = module.measure_runs

    def counted(
        model: Path, manifest: Manifest, runs: Sequence[Run], *, batch_size: int
    ) -> dict[Run, Measured]:
        made.append(list(runs))
        return measure(model, manifest, runs, batch_size=batch_size)

    monkeypatch.setattr(module, "measure_runs", counted)
    return made


def chosen(model: Path, **asked: Any) -> Run:
    """Return the run chosen for a model file."""
    return choose_run(model, read_manifest(model), batch_size=32, **asked)


def change_figures(cache: Path, change: Callable[[dict[str, dict[str, Any]]], None]) -> None:
    """Rewrite what is remembered of the one model in the cache."""
    values = json.loads(cache.read_text())
    (models,) = values["machines"].values()
    (figures,) = models.values()
    change(figures)
    cache.write_text(json.dumps(values))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Hide packages as if they were not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@needs_openvino
def test_auto_is_the_fastest_as_measured(
    model: Path, cache: Path, measurements: list[list[Run]]
) -> None:
    run = chosen(model)
    assert measurements == [
        [each for each in offered_runs(read_manifest(model)) if usable_here(each)]
    ]
    (models,) = json.loads(cache.read_text())["machines"].values()
    figures = models[read_manifest(model).fingerprint]
    assert set(figures) == {str(each) for each in measurements[0]}
    assert str(run) == max(figures, key=lambda each: figures[each]["images_per_s"])
    assert all(
        each["images_per_s"] > 0 and each["least_cosine"] > LEAST_COSINE
        for each in figures.values()
    )


def usable_here(run: Run) -> bool:
    """Return whether auto considers the run on this CPU."""
    return run.precision != BF16 or module.processor_multiplies_bf16()


@needs_openvino
def test_it_is_measured_once_whatever_is_asked_for_later(
    model: Path, cache: Path, measurements: list[list[Run]]
) -> None:
    first = chosen(model)
    assert chosen(model) == first
    assert chosen(model, precision="fp32").precision == "fp32"
    assert chosen(model, backend="openvino").backend == "openvino"
    assert len(measurements) == 1
    chosen(make_model_file(cache.parent / "other.onnx"))
    assert len(measurements) == 2
    chosen(model)
    assert len(measurements) == 2


@needs_openvino
@pytest.mark.parametrize(
    "fastest", [ONNXRUNTIME_FP32, OPENVINO_FP32, pytest.param(OPENVINO_BF16, marks=needs_bf16)]
)
def test_what_is_remembered_decides(
    model: Path, cache: Path, measurements: list[list[Run]], fastest: Run
) -> None:
    chosen(model)
    change_figures(cache, lambda figures: figures[str(fastest)].update(images_per_s=1e9))
    assert chosen(model) == fastest
    assert Embedder(model, threads=1).run == fastest
    assert len(measurements) == 1


@needs_openvino
@pytest.mark.parametrize(
    "flaw",
    [{"least_cosine": LEAST_COSINE - 1e-6}, {"error": "It does not load."}],
    ids=["coarse", "broken"],
)
def test_the_fastest_is_not_chosen_where_its_vectors_are_others(
    model: Path, cache: Path, flaw: dict[str, Any]
) -> None:
    chosen(model)
    change_figures(
        cache, lambda figures: figures[str(OPENVINO_FP32)].update(images_per_s=1e9, **flaw)
    )
    assert chosen(model) != OPENVINO_FP32
    # whoever asks for it gets it
    assert chosen(model, backend="openvino", precision="fp32") == OPENVINO_FP32


@needs_openvino
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 9, "machines": {}}',
        '{"format": 1, "machines": []}',
        '{"format": 1, "machines": {"MACHINE": 3}}',
        '{"format": 1, "machines": {"MACHINE": {"FINGERPRINT": 3}}}',
        '{"format": 1, "machines": {"MACHINE": {"FINGERPRINT": {"onnxruntime fp32": 3}}}}',
        (
            '{"format": 1, "machines": {"MACHINE": {"FINGERPRINT": {"onnxruntime fp32":'
            ' {"images_per_s": "x"}}}}}'
        ),
        '{"format": 1, "machines": {"MACHINE": {"FINGERPRINT": {"cuda": {}}}}}',
    ],
)
def test_a_cache_that_cannot_be_read_is_measured_anew(
    model: Path, cache: Path, measurements: list[list[Run]], text: str
) -> None:
    cache.parent.mkdir()
    cache.write_text(
        text.replace("MACHINE", module._machine()).replace(
            "FINGERPRINT", read_manifest(model).fingerprint
        )
    )
    chosen(model)
    chosen(model)
    assert len(measurements) == 1


@needs_openvino
def test_another_machine_or_release_is_measured_anew(
    model: Path, cache: Path, measurements: list[list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(model)
    before = module._machine()
    monkeypatch.setattr(module, "usable_cpus", lambda: 999)
    assert module._machine() != before
    chosen(model)
    monkeypatch.setattr(module, "version", lambda package: f"{package} 9.9")
    chosen(model)
    assert len(measurements) == 3
    assert len(json.loads(cache.read_text())["machines"]) == 3


@needs_openvino
def test_a_cache_that_cannot_be_written_only_costs_time(
    model: Path, cache: Path, measurements: list[list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file, not a folder")
    for measured in (1, 2):
        assert chosen(model) in measurements[-1]
        assert len(measurements) == measured
    monkeypatch.setattr(module, "cache_folder", no_home)
    chosen(model)
    assert len(measurements) == 3


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_with_one_candidate_nothing_is_measured(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "openvino")
    monkeypatch.setattr(module, "measure_runs", None)  # calling it would fail
    assert chosen(model) == ONNXRUNTIME_FP32
    assert Embedder(model, threads=1).run == ONNXRUNTIME_FP32
    assert not cache.exists()


@needs_openvino
def test_openvino_alone_runs_models_too(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "onnxruntime")
    assert chosen(model).backend == "openvino"
    assert Embedder(model, precision="fp32", threads=1).run == OPENVINO_FP32
    assert cache.exists() == (
        len(offered_runs(read_manifest(model))) > 1 and usable_here(OPENVINO_BF16)
    )


@pytest.mark.parametrize("asked", [{}, {"backend": "onnxruntime"}, {"precision": "fp32"}])
def test_with_no_engine_at_all_it_says_what_to_install(
    model: Path, cache: Path, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "openvino", "onnxruntime")
    with refused(
        "onnxruntime is not installed; run: pip install 'featkit[cpu]'", error=EnvironmentProblem
    ):
        chosen(model, **asked)
    assert not cache.exists()


@pytest.mark.parametrize(
    "asked",
    [{"backend": "openvino"}, {"precision": "bf16"}, {"backend": "openvino", "precision": "bf16"}],
)
def test_what_needs_openvino_says_so_where_it_is_missing(
    model: Path, cache: Path, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "openvino")
    with refused(
        "openvino is not installed; run: pip install 'featkit[openvino]'.", error=EnvironmentProblem
    ):
        chosen(model, **asked)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"backend": "cuda"},
            "There is no backend 'cuda'; use auto, onnxruntime, openvino or tensorrt.",
        ),
        ({"precision": "fp8"}, "There is no precision 'fp8'; use auto, fp32 or bf16."),
        (
            {"backend": "onnxruntime", "precision": "bf16"},
            "onnxruntime computes layers in fp32, not in bf16; use --backend",
        ),
        (
            {"backend": "tensorrt", "precision": "bf16"},
            "tensorrt computes layers in fp32, not in bf16",
        ),
    ],
)
def test_what_does_not_exist_is_refused(model: Path, asked: dict[str, str], words: str) -> None:
    with refused(words):
        chosen(model, **asked)


def test_the_environment_stands_in_for_auto_alone(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(model)
    monkeypatch.setenv("FEATKIT_BACKEND", "onnxruntime")
    assert possible_runs(manifest) == [ONNXRUNTIME_FP32]
    assert possible_runs(manifest, backend="tensorrt") == [Run("tensorrt", "fp32")]
    monkeypatch.setenv("FEATKIT_BACKEND", "cuda")
    with refused("FEATKIT_BACKEND is 'cuda'; use auto, onnxruntime, openvino or tensorrt."):
        possible_runs(manifest)
    monkeypatch.setenv("FEATKIT_BACKEND", "")
    monkeypatch.setenv("FEATKIT_PRECISION", "half")
    with refused("FEATKIT_PRECISION is 'half'; use auto, fp32 or bf16."):
        possible_runs(manifest)
    assert not cache.exists()


@needs_openvino
def test_the_environment_gives_way_to_what_it_does_not_fit(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(model)
    monkeypatch.setenv("FEATKIT_BACKEND", "openvino")
    monkeypatch.setenv("FEATKIT_PRECISION", "fp32")
    assert possible_runs(manifest) == [OPENVINO_FP32]
    assert possible_runs(manifest, precision="bf16") == [OPENVINO_BF16]
    assert possible_runs(manifest, backend="onnxruntime") == [ONNXRUNTIME_FP32]
    monkeypatch.setenv("FEATKIT_BACKEND", "onnxruntime")
    assert possible_runs(manifest, precision="bf16") == [OPENVINO_BF16]
    assert possible_runs(manifest, accepts=lambda run: run == OPENVINO_FP32) == [OPENVINO_FP32]
    assert not cache.exists()


def test_two_variables_that_contradict_each_other_are_refused(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_BACKEND", "onnxruntime")
    monkeypatch.setenv("FEATKIT_PRECISION", "bf16")
    with refused(
        "FEATKIT_BACKEND is onnxruntime and FEATKIT_PRECISION is bf16, but onnxruntime computes"
        " layers in fp32"
    ):
        possible_runs(read_manifest(model))
    assert possible_runs(read_manifest(model), precision="fp32") == [ONNXRUNTIME_FP32]
    int8 = read_manifest(make_layered_file(tmp_path / "int8.onnx", precision="int8"))
    assert possible_runs(int8) == [Run("onnxruntime", "int8")]
    assert not cache.exists()


@needs_openvino
def test_an_option_wins_over_a_variable_that_excludes_it(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_BACKEND", "onnxruntime")
    monkeypatch.setenv("FEATKIT_PRECISION", "bf16")
    assert possible_runs(read_manifest(model), backend="onnxruntime") == [ONNXRUNTIME_FP32]
    assert possible_runs(read_manifest(model), precision="bf16") == [OPENVINO_BF16]
    assert not cache.exists()


def test_auto_takes_bf16_only_where_the_processor_multiplies_it(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    from featkit.backends import openvino

    manifest = read_manifest(model)
    for flags, capable, expected in (
        ("fma avx512_bf16", True, True),
        ("fma", True, False),
        ("amx_bf16", False, False),
    ):
        monkeypatch.setattr(module, "cpu_facts", lambda flags=flags: {"flags": flags})
        monkeypatch.setattr(openvino, "has_bf16", lambda capable=capable: capable)
        assert (OPENVINO_BF16 in possible_runs(manifest)) is expected
        assert possible_runs(manifest, precision="bf16") == [OPENVINO_BF16]
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    # no /proc: where nothing else is allowed it is taken all the same
    monkeypatch.setattr(module, "cpu_facts", lambda: {})
    assert possible_runs(manifest, accepts=lambda run: run.precision == BF16) == [OPENVINO_BF16]
    assert not cache.exists()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_file_of_another_precision_runs_as_it_is(
    tmp_path: Path, cache: Path, precision: str
) -> None:
    file = make_layered_file(tmp_path / "m.onnx", precision=precision)
    manifest = read_manifest(file)
    assert reference_run(manifest) == Run("onnxruntime", precision)
    assert {run.precision for run in possible_runs(manifest)} == {precision}
    embedder = Embedder(file, backend="onnxruntime", threads=1)
    assert embedder.run == Run("onnxruntime", precision)
    assert not cache.exists()
    for other in ("bf16", "fp32"):
        with refused(
            f"layers is a file in {precision} and cannot run in {other}; leave the"
            " precision at auto"
        ):
            Embedder(file, precision=other)


@needs_openvino
def test_a_file_that_openvino_rejects_is_run_by_the_other(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featkit.backends import openvino

    def reject(_model: Path) -> None:
        raise RuntimeError("Exception from somewhere:\nUnsupported operator.")

    monkeypatch.setattr(openvino, "_read", reject)
    assert chosen(model) == ONNXRUNTIME_FP32
    assert Embedder(model, threads=1).run == ONNXRUNTIME_FP32
    (models,) = json.loads(cache.read_text())["machines"].values()
    (figures,) = models.values()
    assert figures["openvino fp32"]["error"].endswith(
        "cannot be loaded by OpenVINO: Unsupported operator."
    )
    with refused(model, "cannot be loaded by OpenVINO: Unsupported operator."):
        Embedder(model, backend="openvino")


@needs_openvino
def test_a_file_that_nothing_loads_is_refused_and_not_remembered(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(path: Path, run: Run, *, threads: int) -> None:
        raise InputError(f"{path} cannot be loaded by {run} with {threads}.")

    monkeypatch.setattr(module, "open_backend", reject)
    with refused("cannot be loaded by onnxruntime fp32 with 1."):
        chosen(model)
    assert not cache.exists()


@needs_openvino
def test_large_files_are_measured_one_after_the_other(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    class Counted(module._Timed):
        """Notes how many sessions there are at once."""

        most = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(None)
            Counted.most = max(Counted.most, len(opened))

        def __del__(self) -> None:
            opened.pop()

    monkeypatch.setattr(module, "_Timed", Counted)
    chosen(model)
    together, Counted.most = Counted.most, 0
    assert together == len([run for run in offered_runs(read_manifest(model)) if usable_here(run)])
    monkeypatch.setattr(module, "SIDE_BY_SIDE_BYTES", 1)
    cache.unlink()
    chosen(model)
    assert Counted.most == 1


def test_nothing_that_is_accepted_is_an_environment_problem(model: Path) -> None:
    with refused(
        model, "compatible with those already stored", "featkit[openvino]", error=EnvironmentProblem
    ):
        chosen(model, accepts=lambda _run: False)


@pytest.mark.parametrize(
    ("size", "most", "expected"), [(64, 32, 8), (64, 4, 4), (512, 32, 1), (8, 32, 32)]
)
def test_a_call_has_as_many_images_as_fill_it(
    tmp_path: Path, size: int, most: int, expected: int
) -> None:
    file = make_model_file(tmp_path / "m.onnx", size=size)
    backend = open_backend(file, ONNXRUNTIME_FP32, threads=1)
    assert images_per_call(backend, read_manifest(file), most) == expected


def test_a_file_whose_batches_matter_has_one_image_a_call(tmp_path: Path) -> None:
    file = make_model_file(tmp_path / "m.onnx", batch_invariant=False)
    assert (
        images_per_call(open_backend(file, ONNXRUNTIME_FP32, threads=1), read_manifest(file), 32)
        == 1
    )


@needs_bf16
def test_the_shipped_model_is_the_same_in_bf16_on_drawn_images() -> None:
    path = default_model_path()
    found = module.measure_runs(
        path, read_manifest(path), [ONNXRUNTIME_FP32, OPENVINO_BF16], batch_size=8
    )
    assert found[ONNXRUNTIME_FP32].least_cosine == pytest.approx(1, abs=1e-6)
    assert 1 - 1e-3 < found[OPENVINO_BF16].least_cosine < 1 - 1e-7
