"""Promises of the Slurm script: a shell can run it, it begins and resumes the command, and a
warning becomes a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from featkit.errors import InputError
from featkit_train.settings import with_settings
from featkit_train.slurm import slurm_script
from tests.images import draw_folder
from tests.train.small import SMALL

COMMAND = ("train", "dino", "my images/", "--out", "it's/a run", "--set", "optim.lr=0.002")
# What a cluster has: srun starts the task, and passes signals on to it; scontrol names hosts, and
# notes what is queued again.
SRUN = """#!/bin/bash
shift
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi
"""


def script_of(*command: str) -> str:
    """Return a script for two processes on one machine."""
    return slurm_script(
        command,
        nodes=1,
        gpus_per_node=2,
        time="0-00:10",
        partition="short queue",
        cpus_per_task=2,
        name="small",
    )


def test_script_is_valid_bash_with_quoted_arguments(tmp_path: Path) -> None:
    script = script_of(*COMMAND)
    assert (
        """command=(train dino 'my images/' --out 'it'"'"'s/a run' --set optim.lr=0.002)"""
        in script
    )
    assert (
        "#SBATCH --partition='short queue'\n#SBATCH --gpus-per-node=2\n#SBATCH --cpus-per-task=2\n"
        in script
    )
    assert "#SBATCH --time=0-00:10\n" in script
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)


def test_unset_resources_are_left_out() -> None:
    script = slurm_script(COMMAND, nodes=4, gpus_per_node=8, time="24:00:00", name="large")
    assert "--partition" not in script
    assert "--cpus-per-task" not in script
    assert "--nnodes=4 --nproc-per-node=8" in script


def test_script_needs_an_out_and_printable_names() -> None:
    with pytest.raises(InputError, match="needs --out"):
        script_of("train", "dino", "pictures/")
    with pytest.raises(InputError, match="leave out line breaks"):
        slurm_script(COMMAND, nodes=1, gpus_per_node=1, time="1:00", name="two\nlines")


def steps(out: Path) -> list[int]:
    """Return the steps that a run has logged."""
    path = out / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_job_stops_at_the_warning_requeues_and_resumes(tmp_path: Path) -> None:
    draw_folder(tmp_path / "my images", 20)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(with_settings(SMALL, {"run.steps": 60})))
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    out = tmp_path / "the run"
    command = (
        "train",
        "dino",
        "my images",
        "--out",
        "the run",
        "--recipe",
        "small.yaml",
        "--quiet",
    )
    (tmp_path / "job.sh").write_text(script_of(*command))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),
    }

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "job.sh"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    for _ in range(1200):
        if len(steps(out)) >= 2 or first.poll() is not None:
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    _, error = first.communicate(timeout=120)
    done = steps(out)
    assert 2 <= len(done) < 60, error
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n", error
    assert error.count("add --resume to continue from there") == 1
    second = start()
    _, error = second.communicate(timeout=200)
    assert second.returncode == 0, error
    assert steps(out) == list(range(1, 61))
