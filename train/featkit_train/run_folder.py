"""The files of a run: its config, metrics, notes and result.

Only the main process writes; all processes read.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

import featkit
from featkit.atomic import replace_file, write_text
from featkit.errors import InputError
from featkit.paths import text_path
from featkit_train.config import TrainConfig
from featkit_train.log import Log
from featkit_train.methods import METHODS
from featkit_train.report.page import flattened, read_config
from featkit_train.settings import from_mapping, to_mapping
from featkit_train.weights import BACKBONE_FILE

CONFIG_FILE, METRICS_FILE, NOTES_FILE = "config.yaml", "metrics.jsonl", "notes.jsonl"
CHECKPOINTS, SNAPSHOTS, LOCK_FILE, BEST_FILE = (
    "checkpoints",
    "snapshots",
    "writer.lock",
    "best.safetensors",
)
Write = Callable[[int, Log], None]
# Settings that do not change what is learned: a run may resume with other values.
FREE = frozenset(
    "engine.shard engine.compile engine.checkpoint_activations run.workers run.cache_bytes"
    " run.device run.keep_checkpoints run.log_every".split()
)


# Digests of images in config.yaml, and what a message calls the images.
DIGESTS = {"keys_sha256": "images to learn from", "held_out_keys_sha256": "images held out"}


class RunFolder:
    """The folder of one run. data: names and digests of its images.

    is_same: returns whether another digest of that name means the same images, whose keys an
    earlier version may have spelled differently.
    """

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        data: Mapping[str, str | None],
        *,
        is_same: Callable[[str, str], bool] = lambda _name, _digest: False,
    ) -> None:
        self.path, self.config, self.data, self._is_same = path, config, dict(data), is_same

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def backbone(self) -> Path:
        """The file of the trained backbone."""
        return self.path / BACKBONE_FILE

    def begin(self) -> None:
        """Write config.yaml with the sections that the method reads. InputError if the folder holds
        a run."""
        if (self.path / CONFIG_FILE).exists():
            raise InputError(
                f"{self.path} holds a run already; add --resume to continue it, or choose another"
                " --out."
            )
        versions = {"featkit": featkit.__version__, "torch": str(torch.__version__)}
        unread = METHODS[self.config.method].unread()
        config = {
            name: value for name, value in to_mapping(self.config).items() if name not in unread
        }
        record = {"config": config, "data": self.data, "versions": versions}
        write_text(self.path / CONFIG_FILE, yaml.safe_dump(record, sort_keys=False))

    def check_same(self) -> None:
        """InputError if the run was begun with other settings or other images, or if its
        config.yaml is damaged."""
        earlier, data = self._as_begun()
        advice = "Choose another --out"
        # Methods with labels cannot start from an earlier run.
        if "classifier" not in METHODS[self.config.method].reads:
            advice = (
                f"To train further, start another run from it: --init {self.path} --out ANOTHER"
            )
        if (
            earlier.run.steps < self.config.run.steps
            and first_difference(earlier, self.config, but="run.steps") is None
        ):
            raise InputError(
                f"{self.path} was begun with run.steps {earlier.run.steps:,}, and now it is"
                f" {self.config.run.steps:,}; a run's schedules depend on its length. {advice}."
            )
        difference = first_difference(earlier, self.config)
        if difference is not None:
            raise InputError(f"{self.path} was begun with other settings: {difference}.")
        for digest, what in DIGESTS.items():
            if data[digest] != self.data[digest] and not self._is_same(digest, str(data[digest])):
                raise InputError(
                    f"{self.path} was begun with other {what}, from {data['names']}. Name the same"
                    " images again."
                )

    def _as_begun(self) -> tuple[TrainConfig, Mapping[str, Any]]:
        """Read config and data of the existing run. InputError, naming the file, if it is
        damaged."""
        path = self.path / CONFIG_FILE
        record = read_config(self.path)
        data, versions = record.get("data"), record.get("versions")
        # A file that was cut short may still be YAML with fewer settings, so check for its end.
        if (
            not isinstance(data, dict)
            or not {"names", *DIGESTS} <= data.keys()
            or not isinstance(versions, dict)
            or not ({"featkit", "torch"} <= versions.keys())
        ):
            raise InputError(f"{path} is cut short. Restore it from a copy, or start another run.")
        try:
            config = from_mapping(TrainConfig, record["config"])
        except InputError as error:
            raise InputError(
                f"{path} is damaged, or from another version of featkit: {error}"
            ) from error
        return config, data

    def forget_after(self, step: int) -> None:
        """Drop metrics and notes past `step`; the resumed run writes them again."""
        for name in (METRICS_FILE, NOTES_FILE):
            path = self.path / name
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                write_text(
                    path,
                    "".join(
                        line + "\n" for line in lines if step > 0 and 0 <= _step_of(line) <= step
                    ),
                )

    def note(self, step: int, sentence: str) -> None:
        """Keep a note of a step for the report."""
        with (self.path / NOTES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "note": sentence}, ensure_ascii=False) + "\n")

    def keep_best(self) -> None:
        """Keep a copy of the current backbone as the best one."""
        _copy(self.backbone, self.path / BEST_FILE)

    def roll_back(self) -> None:
        """Restore the best backbone."""
        _copy(self.path / BEST_FILE, self.backbone)

    @contextlib.contextmanager
    def metrics(self, first_step: int, on_log: Callable[[Log], None]) -> Iterator[Write]:
        """Yield a function that writes numbers of a step to metrics.jsonl and TensorBoard, and
        passes them to `on_log`."""
        with (
            text_path(self.path) as board_folder,
            (self.path / METRICS_FILE).open("a", encoding="utf-8") as file,
        ):
            board = SummaryWriter(board_folder, purge_step=first_step if first_step else None)

            def write(step: int, log: Log) -> None:
                file.write(json.dumps({"step": step, **log}) + "\n")
                file.flush()
                for name, value in log.items():
                    board.add_scalar(name, value, step)
                on_log({"step": step, **log})

            try:
                yield write
            finally:
                board.close()


def _step_of(line: str) -> int:
    """Return the step of a line of JSON; -1 for a torn or damaged line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1


def _copy(source: Path, target: Path) -> None:
    with replace_file(target) as temporary:
        shutil.copyfile(source, temporary)


def first_difference(earlier: TrainConfig, now: TrainConfig, *, but: str = "") -> str | None:
    """Describe the first setting that differs and changes what is learned; None if there is none.
    but: a setting that may differ.
    """
    before, after = dict(flattened(to_mapping(earlier))), dict(flattened(to_mapping(now)))
    for name in after:
        if before.get(name) != after[name] and name not in FREE and name != but:
            return f"{name} was {before.get(name)} and is now {after[name]}"
    return None
