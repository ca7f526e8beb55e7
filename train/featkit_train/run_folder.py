"""The files of a run: what it was told, what it measured, what it said, and the result.

Only the main process of several writes; all read.
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
from featkit_train.report.page import read_config
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
# Settings that change nothing of what is learned: a run may go on with others.
FREE = frozenset(
    "engine.shard engine.compile engine.checkpoint_activations run.workers run.cache_bytes"
    " run.device run.keep_checkpoints run.log_every".split()
)


# What config.yaml says of the images, and how it is called.
DIGESTS = {"keys_sha256": "images to learn from", "held_out_keys_sha256": "images held out"}


class RunFolder:
    """A folder of one run. `data` says by digests which images it is of.

    is_same: whether another digest of that name is of the same images, as an earlier version
    called them.
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
        """Where checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def backbone(self) -> Path:
        """The result."""
        return self.path / BACKBONE_FILE

    def begin(self) -> None:
        """Write what the run was told, of the sections that its method reads. InputError when the
        folder holds a run."""
        if (self.path / CONFIG_FILE).exists():
            raise InputError(
                f"{self.path} holds a run already; add --resume to go on with it, or choose another"
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
        """InputError where the run was begun with other settings, or on other images, or does not
        say with which."""
        earlier, data = self._as_begun()
        on = "Choose another --out"
        # those with labels begin from no earlier run
        if "classifier" not in METHODS[self.config.method].reads:
            on = f"To train on, begin another run from it: --init {self.path} --out ANOTHER"
        if (
            earlier.run.steps < self.config.run.steps
            and first_difference(earlier, self.config, but="run.steps") is None
        ):
            raise InputError(
                f"{self.path} was begun with run.steps {earlier.run.steps:,}, now it is"
                f" {self.config.run.steps:,}, and a run's schedules depend on its length. {on}."
            )
        difference = first_difference(earlier, self.config)
        if difference is not None:
            raise InputError(f"{self.path} was begun with other settings: {difference}.")
        for digest, what in DIGESTS.items():
            if data[digest] != self.data[digest] and not self._is_same(digest, str(data[digest])):
                raise InputError(
                    f"{self.path} was begun with other {what}, in {data['names']}; name the same"
                    " again."
                )

    def _as_begun(self) -> tuple[TrainConfig, Mapping[str, Any]]:
        """Config and data of the run that is there. InputError, naming the file, when it is
        emptied, cut or damaged."""
        path = self.path / CONFIG_FILE
        record = read_config(self.path)
        data, versions = record.get("data"), record.get("versions")
        # The last of it: a file that was cut short may still be YAML, with fewer settings.
        if (
            not isinstance(data, dict)
            or not {"names", *DIGESTS} <= data.keys()
            or not isinstance(versions, dict)
            or not ({"featkit", "torch"} <= versions.keys())
        ):
            raise InputError(f"{path} is cut short; restore it from a copy, or begin another run.")
        try:
            config = from_mapping(TrainConfig, record["config"])
        except InputError as error:
            raise InputError(
                f"{path} is damaged, or of another version of featkit: {error}"
            ) from error
        return config, data

    def forget_after(self, step: int) -> None:
        """Drop what was measured and said past `step`: it will be again."""
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
        """Keep what was said at a step, for the report."""
        with (self.path / NOTES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "note": sentence}, ensure_ascii=False) + "\n")

    def keep_best(self) -> None:
        """The result as it is now is the best so far."""
        _copy(self.backbone, self.path / BEST_FILE)

    def roll_back(self) -> None:
        """The best is the result again."""
        _copy(self.path / BEST_FILE, self.backbone)

    @contextlib.contextmanager
    def metrics(self, first_step: int, on_log: Callable[[Log], None]) -> Iterator[Write]:
        """A function that writes one line of metrics.jsonl and the same to TensorBoard, and shows
        it."""
        with (
            text_path(self.path) as place,
            (self.path / METRICS_FILE).open("a", encoding="utf-8") as file,
        ):
            board = SummaryWriter(place, purge_step=first_step if first_step else None)

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
    """The step of a line of JSON; -1 for a line that a power cut has torn or anything else has
    damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1


def _copy(source: Path, target: Path) -> None:
    with replace_file(target) as temporary:
        shutil.copyfile(source, temporary)


def first_difference(earlier: TrainConfig, now: TrainConfig, *, but: str = "") -> str | None:
    """The first setting in which two configs differ, in words; None where there is none that
    changes what is learned.

    but: a setting that may differ.
    """
    before, after = _leaves(to_mapping(earlier)), _leaves(to_mapping(now))
    for name in after:
        if before.get(name) != after[name] and name not in FREE and name != but:
            return f"{name} was {before.get(name)}, now it is {after[name]}"
    return None


def _leaves(mapping: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        leaves.update(
            _leaves(value, f"{at}{key}.") if isinstance(value, dict) else {at + key: value}
        )
    return leaves
