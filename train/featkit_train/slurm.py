"""Scripts for sbatch that start a training run, or resume it, as often as it takes.

Five minutes before the time limit Slurm sends SIGUSR1: the run writes a checkpoint and ends, and
the job requeues itself. Slurm requeues a preempted job.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from featkit.errors import InputError
from featkit_train.run_folder import CONFIG_FILE

WARNING_S = 300  # between the signal and the time limit, for a step and a checkpoint
SHUTDOWN_S = 120  # time that torchrun waits for its processes to end after SIGTERM

SCRIPT = r"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{resources}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=B:USR1@{warning_s}
set -u

command=({command})
if [ -f {config} ]; then command+=(--resume); fi

# torchrun ignores SIGUSR1, so this forwards it to the training processes. It does no harm if Slurm
# sends it to all of them, too.
export FEATKIT_TORCHRUN='
trap "" USR1
"$@" & torchrun=$!
trap "pkill -USR1 -P $torchrun" USR1
while kill -0 "$torchrun" 2>/dev/null; do wait "$torchrun"; done  # a signal ends only the wait
wait "$torchrun"'
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={shutdown_s}

first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 bash -c "$FEATKIT_TORCHRUN" bash {python} -m torch.distributed.run \
  --nnodes={nodes} --nproc-per-node={processes} \
  --rdzv-backend=c10d --rdzv-endpoint="$first_host:$((20000 + SLURM_JOB_ID % 20000))" \
  --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" \
  -m featkit "${{command[@]}}" &
run=$!
asked=0
trap 'asked=1; kill -USR1 "$run"' USR1
trap 'kill -TERM "$run"' TERM
while kill -0 "$run" 2>/dev/null; do wait "$run"; done
wait "$run"
status=$?

if [ "$asked" = 1 ] && [ "$status" != 0 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


def slurm_script(
    command: Sequence[str],
    *,
    nodes: int,
    gpus_per_node: int,
    time: str,
    partition: str | None = None,
    cpus_per_task: int | None = None,
    name: str,
) -> str:
    """Return an sbatch script that runs `featkit` on every GPU of `nodes` machines.

    command: the arguments after `featkit`, with --out; an existing run is resumed. gpus_per_node:
    also the number of processes on each machine. time: in Slurm's format, such as 24:00:00. The job
    runs in the folder where it is submitted, with this Python. InputError without --out, and for a
    value with line breaks.
    """
    requested = {
        "partition": partition,
        "gpus-per-node": gpus_per_node,
        "cpus-per-task": cpus_per_task,
    }
    for value in (name, time, partition or ""):
        if "\n" in value or not value.isprintable():
            raise InputError(
                f"A Slurm job cannot have {value!r} as its name, time or partition; leave out line"
                " breaks."
            )
    return SCRIPT.format(
        name=shlex.quote(name),
        nodes=nodes,
        resources="\n".join(
            f"#SBATCH --{key}={shlex.quote(str(value))}"
            for key, value in requested.items()
            if value is not None
        ),
        time=shlex.quote(time),
        warning_s=WARNING_S,
        shutdown_s=SHUTDOWN_S,
        command=shlex.join(word for word in command if word != "--resume"),
        config=shlex.quote(f"{_out(command)}/{CONFIG_FILE}"),
        python=shlex.quote(sys.executable),
        processes=gpus_per_node,
    )


def _out(command: Sequence[str]) -> str:
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word.startswith("--out="):
            return word.removeprefix("--out=")
        if word == "--out" and following:
            return following
    raise InputError("A Slurm job needs --out, which tells it whether there is a run to resume.")
