"""Faults of a machine are found, with what to do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit import __version__, doctor
from featkit.backends import opening
from featkit.doctor import NVIDIA_GPUS, OK, PROBLEM, WARNING, Finding, examine
from featkit.embedder import Embedder

EPOCH = time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0))


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_is_described() -> None:
    found = by_name(examine())
    assert found["featkit"].value.startswith(__version__)
    assert "GiB usable" in found["memory"].value
    assert found["FAISS"].value[0].isdigit()
    engines = [finding for name, finding in found.items() if name.startswith("engine ")]
    assert any(each.value.startswith("works on ") for each in engines)
    assert f"numpy {np.__version__}" in found["packages"].value
    assert (found["GPU"].value == "none with NVIDIA's driver") == (not NVIDIA_GPUS.exists())
    assert all(each.status != PROBLEM for each in found.values()), found
    assert all(each.advice for each in found.values() if each.status != OK)


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("libengine.so: cannot open shared object file\nmore")


@pytest.mark.parametrize(
    ("change", "name", "status", "words"),
    [
        (
            lambda patch: patch.setattr(Embedder, "embed", fail),
            "engine onnxruntime fp32",
            PROBLEM,
            "libengine.so: cannot open shared object file",
        ),
        (
            lambda patch: patch.setattr(doctor, "offered_runs", lambda _manifest: []),
            "engines",
            PROBLEM,
            "none is installed",
        ),
        (
            lambda patch: patch.setattr(doctor, "spare_memory", lambda: 2**29),
            "memory",
            WARNING,
            "0.5 GiB free",
        ),
        (
            lambda patch: patch.setattr(doctor, "_file_system", lambda _path: "nfs4"),
            "this folder",
            WARNING,
            "nfs4",
        ),
        (
            lambda patch: patch.setattr(
                shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1)
            ),
            "this folder",
            WARNING,
            "0.0 GiB free",
        ),
        (
            lambda patch: patch.setattr(os, "access", lambda *_: False),
            "this folder",
            PROBLEM,
            "GiB free",
        ),
        (
            lambda patch: patch.setattr(
                time, "gmtime", lambda: time.struct_time((1970,) + (1,) * 8)
            ),
            "clock",
            PROBLEM,
            "1970-01-01",
        ),
        (
            lambda patch: patch.setattr(time, "time", lambda: 1_000.0),
            "clock",
            WARNING,
            "s from it",
        ),
        (
            lambda patch: patch.setattr(doctor, "_available_memory", lambda: 2**28),
            "memory",
            WARNING,
            "0.2 GiB free",
        ),
        (
            lambda patch: patch.setattr(opening, "_installed", lambda _name: True),
            "packages",
            PROBLEM,
            "numpy",
        ),
    ],
)
def test_what_is_wrong_is_found_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    name: str,
    status: str,
    words: str,
) -> None:
    change(monkeypatch)
    finding = by_name(examine())[name]
    assert finding.status == status
    assert words in finding.value
    assert finding.advice.endswith(".")


def test_a_memory_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_memory", lambda: 2**30)
    monkeypatch.setattr(doctor, "machine_memory", lambda: [2**34])
    value = by_name([doctor._memory()])["memory"].value
    assert value.startswith("1.0 GiB usable of 16.0 GiB, by a cgroup or `ulimit -v`, ")


def test_a_gpu_that_is_not_used_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    facts = "Model: \t NVIDIA H200\nIRQ:   \t 120\n"
    (tmp_path / "0000:01:00.0" / "information").write_text(facts)
    monkeypatch.setattr(doctor, "NVIDIA_GPUS", tmp_path)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name.endswith("gpu") else "1")
    assert doctor._gpus() == Finding(
        "GPU",
        "NVIDIA H200",
        WARNING,
        "It is not used: pip uninstall onnxruntime faiss-cpu; pip install 'featkit[gpu]'.",
    )
    monkeypatch.setattr(doctor, "_version", lambda _name: "1")
    assert doctor._gpus() == Finding("GPU", "NVIDIA H200")
    assert doctor._misses_gpu("onnxruntime CPU")
    assert not doctor._misses_gpu("onnxruntime CUDA")


def test_network_file_systems_by_fuse_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("fuse.rclone", "nfs4", "smb3", "fuse.glusterfs"):
        monkeypatch.setattr(doctor, "_file_system", lambda _path, kind=kind: kind)
        assert by_name(doctor._disks(Path()))["this folder"].status == WARNING


def test_extras_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", "aaa[x]>=1; extra == 'cpu'", 'numpy>=2.0; extra == "cpu"']
    monkeypatch.setattr(doctor, "requires", lambda _name: lines)
    assert doctor._packages_of("cpu") == ["aaa", "numpy"]
    assert doctor._packages_of("") == ["numpy"]
    found = by_name(doctor._extras())
    assert found["extra cpu"].value == "not installed: aaa"


def test_the_file_system_of_a_path_is_that_of_its_mount(tmp_path: Path) -> None:
    assert doctor._file_system(Path("/proc/self")) in ("proc", "")
    assert doctor._existing(tmp_path / "a" / "b") == tmp_path
