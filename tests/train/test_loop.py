"""Promises of the loop: what a run leaves behind, and that a resumed run is the unbroken one, bit
for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.lock import WriterLock
from featkit.sources import open_source
from featkit_export.request import ExportRequest, export
from featkit_export.verify import draw_images
from featkit_train.config import TrainConfig
from featkit_train.engine.checkpoints import PROGRESS_FILE, STATE_FILE, list_checkpoints
from featkit_train.log import Log
from featkit_train.loop import train
from featkit_train.methods.base import IMAGENET_MEAN, IMAGENET_STD
from featkit_train.networks.base import Backbone, Features
from featkit_train.networks.vit import VisionTransformer
from featkit_train.processes.device import pick_autocast, pick_device
from featkit_train.run_folder import LOCK_FILE
from featkit_train.run_parts import RunParts
from featkit_train.run_state import RunState
from featkit_train.watching.listener import Listener
from featkit_train.watching.plan import MEASURED_STEPS, WARM_STEPS, Plan
from featkit_train.weights import load_backbone
from tests.featkit.sources.files import write_tar
from tests.images import draw_folder
from tests.processes import run_python
from tests.sentences import refused
from tests.train.methods.published_backbone import save_published
from tests.train.published_files import foreign
from tests.train.small import small_config


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("loop") / "images", 44)


def run(
    config: TrainConfig,
    image_folder: Path,
    out: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> list[Log]:
    """Train and return all logs; `stop_after` is a Ctrl-C at the log of that step."""
    logs: list[Log] = []

    def on_log(log: Log) -> None:
        logs.append(log)
        if stop_after is not None and log["step"] == stop_after and "loss" in log:
            signal.raise_signal(signal.SIGINT)

    train(config, [open_source(image_folder)], out, resume=resume, listener=Listener(on_log=on_log))
    return logs


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_a_run_leaves_what_the_design_says(image_folder: Path, tmp_path: Path) -> None:
    config = small_config()
    logs = run(config, image_folder, tmp_path / "run")
    names = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    assert {"config", "metrics", "events", "checkpoints", "backbone"} <= names
    record = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert record["config"]["run"]["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 9))
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == config.run.keep_checkpoints
    for name in ("steps_per_s", "images_per_s", "waiting_share", "loss", "teacher_entropy"):
        assert any(name in log for log in logs), name
    assert [log["step"] for log in logs if "copy_recall" in log] == [0, 4, 8]


def test_the_backbone_that_is_left_is_the_teacher(image_folder: Path, tmp_path: Path) -> None:
    run(small_config(), image_folder, tmp_path / "run")
    backbone, info = load_backbone(tmp_path / "run")
    state = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / STATE_FILE)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[f"model.teacher.backbone.{name}"])
    assert info.geometry.height == 32
    assert info.origin["steps"] == "8"


SHORT = (
    "run.steps=5",
    "run.batch_size=6",
    "run.evaluate_every=5",
    "run.checkpoint_every=2",
    "crops.num_local=1",
)
NOISY = ("noise.drop_path=0.3", "noise.drop_path_rule=uniform")
METHODS = {
    "dino": ["method=dino", *NOISY],
    "ibot": ["method=ibot", "dino.centering=center"],
    "dinov2": [
        "method=dinov2",
        *NOISY,
        "dino.centering=sinkhorn",
        "engine.accumulate=2",
        "engine.checkpoint_activations=true",
    ],
    "dinov3": [
        *("method=dinov3", "model.position=rotary", "noise.rotary_rescale=2.0"),
        *("gram.weight=1.0", "gram.size=32", "gram.update_every=2"),
    ],
    "distill": ["method=distill", "pretrained.name={published}", "pretrained.head_steps=3"],
    "adapt": [
        "method=adapt",
        "model={}",
        "pretrained.name={published}",
        "pretrained.head_steps=3",
        "watch.tolerance=0.9",
    ],
}


def short_config(method: str, published: Path, *settings: str) -> TrainConfig:
    """Five steps of a method with every part that keeps a state or draws at random."""
    return small_config(
        *SHORT,
        *[setting.replace("{published}", str(published)) for setting in METHODS[method]],
        *settings,
    )


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Metrics, checkpoint and result, byte for byte; times aside."""
    assert metrics(ours) == metrics(theirs)
    checkpoints = [list_checkpoints(out / "checkpoints")[-1] for out in (ours, theirs)]
    for file in (STATE_FILE, PROGRESS_FILE):
        assert (checkpoints[0] / file).read_bytes() == (checkpoints[1] / file).read_bytes()
    assert (ours / "backbone.safetensors").read_bytes() == (
        theirs / "backbone.safetensors"
    ).read_bytes()


def metrics(out: Path) -> list[Log]:
    """All that is written of a run but how fast it was."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


TIMES = ("steps_per_s", "images_per_s", "waiting_share")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "backbone"
    save_published(folder)
    return folder


@pytest.mark.parametrize("stop_after", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    image_folder: Path,
    published: Path,
    tmp_path: Path,
    whole: dict[str, Path],
    method: str,
    stop_after: int,
) -> None:
    config = short_config(method, published)
    if method not in whole:
        run(config, image_folder, whole["folder"] / method)
        whole[method] = whole["folder"] / method
    with pytest.raises(Interrupted, match="--resume"):
        run(config, image_folder, tmp_path / "broken", stop_after=stop_after)
    workers = "run.workers=1" if method == "dinov3" else "run.workers=0"  # any number of them
    run(short_config(method, published, workers), image_folder, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", whole[method])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Unbroken runs by their method, each made once."""
    return {"folder": tmp_path_factory.mktemp("whole")}


class Killed(BaseException):
    """An exception that nothing in training may catch."""


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 5])
def test_a_run_killed_at_any_step_resumes_bit_for_bit(
    image_folder: Path, published: Path, tmp_path: Path, whole: dict[str, Path], step: int
) -> None:
    config = short_config("dinov2", published)
    if "dinov2" not in whole:
        run(config, image_folder, whole["folder"] / "dinov2")
        whole["dinov2"] = whole["folder"] / "dinov2"

    def kill(log: Log) -> None:
        if log["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        train(
            config, [open_source(image_folder)], tmp_path / "killed", listener=Listener(on_log=kill)
        )
    run(config, image_folder, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "killed", whole["dinov2"])


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_killed_before_its_checkpoint_resumes_bit_for_bit(
    image_folder: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = short_config("dino", published)
    run(config, image_folder, tmp_path / "whole")
    save = RunState.save_backbone

    def kill(self: RunState, backbone: Backbone) -> None:
        if self.progress.step == step:
            raise Killed
        save(self, backbone)

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save_backbone", kill)
        with pytest.raises(Killed):
            run(config, image_folder, tmp_path / "killed")
    run(config, image_folder, tmp_path / "killed", resume=True)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_unreadable_images_are_counted_across_a_resume(
    tmp_path: Path,
) -> None:
    torn = draw_folder(tmp_path / "torn", 44)
    for number in range(0, 44, 3):
        (torn / f"{number:03d}.jpg").write_bytes(b"no image")
    # The checkpoint of step 2 lies between two logs, so that what no log has told has to be in it.
    config = short_config("dino", Path(), "run.log_every=3")
    report = train(config, [open_source(torn)], tmp_path / "whole")
    counts = [line["unreadable"] for line in metrics(tmp_path / "whole") if "unreadable" in line]
    assert len(counts) == 2
    assert 0 < counts[0] < counts[1] == report.unreadable

    def kill(log: Log) -> None:
        if log["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config, [open_source(torn)], tmp_path / "killed", listener=Listener(on_log=kill))
    with pytest.raises(Interrupted):
        run(config, torn, tmp_path / "stopped", stop_after=3)
    for name in ("killed", "stopped"):
        resumed = train(config, [open_source(torn)], tmp_path / name, resume=True)
        assert resumed.unreadable == report.unreadable
        assert_same_run(tmp_path / name, tmp_path / "whole")


def test_a_killed_process_is_resumed_bit_for_bit(
    image_folder: Path, published: Path, tmp_path: Path
) -> None:
    program = f"""
import os, signal, sys
from collections.abc import Callable
from pathlib import Path
import torch
from featkit.sources import open_source
from featkit_train import run_parts
from featkit_train.loop import train
from featkit_train.watching.listener import Listener
from tests.train.test_loop import short_config
run_parts.usable_cpus = lambda: 1
def kill(log):
    if log["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
images = open_source({str(image_folder)!r})
listener = Listener(on_log=kill)
train(short_config("dino", Path()), [images], Path(sys.argv[1]), listener=listener)
"""
    assert run_python(program, tmp_path / "killed")[0] == -signal.SIGKILL
    config = short_config("dino", published)
    run(config, image_folder, tmp_path / "killed", resume=True)
    run(config, image_folder, tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_killed_run_over_one_file_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    # 20 images to learn from are three steps: the one after the kill is of the second epoch,
    # whose images the unbroken run has decoded already, and the resumed run's worker has to find
    # in the file.
    lengths = (
        "run.steps=4",
        "run.batch_size=6",
        "run.evaluate_every=4",
        "run.checkpoint_every=2",
        "crops.num_local=1",
    )
    config, loose = small_config(*lengths), draw_folder(tmp_path / "images", 24)
    packed = pack(loose, tmp_path / f"images.{kind}")

    def kill(log: Log) -> None:
        if log["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config, [open_source(packed)], tmp_path / "killed", listener=Listener(on_log=kill))
    assert [path.name for path in list_checkpoints(tmp_path / "killed" / "checkpoints")] == [
        "step-00000002"
    ]
    run(small_config(*lengths, "run.workers=1"), packed, tmp_path / "killed", resume=True)
    run(config, packed, tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "whole")] == [1, 2, 3, 4]
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    run(config, loose, tmp_path / "loose")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "loose"), (
        "a file teaches what its images in a folder do"
    )


def pack(folder: Path, path: Path) -> Path:
    """The images of a folder in a tar, or in a Parquet file of several row groups, whichever the
    name says."""
    files = [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]
    if path.suffix == ".tar":
        return write_tar(path, files)
    rows = [{"bytes": data, "path": name} for name, data in files]
    pq.write_table(pa.table({"image": pa.array(rows)}), path, row_group_size=5)
    return path


def test_what_changes_nothing_learned_may_be_other_on_resume(
    image_folder: Path, published: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(short_config("dino", published), image_folder, tmp_path / "run", stop_after=2)
    free = [
        "run.workers=1",
        "run.cache_bytes=0",
        "run.device=auto",
        "run.keep_checkpoints=1",
        "run.log_every=2",
    ]
    run(short_config("dino", published, *free), image_folder, tmp_path / "run", resume=True)
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 4, 5]


def test_equal_seeds_give_equal_bytes_and_others_do_not(image_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(small_config(f"run.seed={seed}", "run.steps=2"), image_folder, tmp_path / name)
    first, second, third = (load_file(tmp_path / name / "backbone.safetensors") for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_run_is_not_begun_twice_nor_resumed_otherwise(image_folder: Path, tmp_path: Path) -> None:
    run(small_config("run.steps=2"), image_folder, tmp_path / "run")
    with pytest.raises(InputError, match="add --resume"):
        run(small_config("run.steps=2"), image_folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"optim\.lr was 0\.001 and is now 0\.5"):
        run(
            small_config("run.steps=2", "optim.lr=0.5"), image_folder, tmp_path / "run", resume=True
        )
    with pytest.raises(InputError, match="no run to resume"):
        run(small_config(), image_folder, tmp_path / "none", resume=True)


def test_a_longer_run_starts_from_an_earlier_one(image_folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "run", tmp_path / "longer"
    run(small_config("run.steps=2"), image_folder, first)
    with refused(
        "run.steps 2, and now it is 4; a run's schedules depend on its length",
        f"--init {first} --out ANOTHER",
    ):
        run(small_config("run.steps=4"), image_folder, first, resume=True)
    with refused("optim.lr was 0.001 and is now 0.5"):
        run(small_config("run.steps=4", "optim.lr=0.5"), image_folder, first, resume=True)
    run(small_config("run.steps=4", f"init={json.dumps(str(first))}"), image_folder, second)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:300],
        lambda _text: "",
        lambda _text: "config: [",
        lambda text: text.rpartition("torch")[0],
    ],
    ids=["cut", "emptied", "no YAML", "last line cut"],
)
def test_a_damaged_config_is_refused_by_name(
    image_folder: Path, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    run(small_config("run.steps=1"), image_folder, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(damage(config.read_text()))
    with refused(config):
        run(small_config("run.steps=1"), image_folder, tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(image_folder: Path, tmp_path: Path) -> None:
    run(small_config("run.steps=3"), image_folder, tmp_path / "run")
    state = list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="step-00000003"):
        run(small_config("run.steps=3"), image_folder, tmp_path / "run", resume=True)


def test_training_teaches_the_student_to_agree_with_its_teacher(
    image_folder: Path, tmp_path: Path
) -> None:
    # With Sinkhorn targets a network that distinguishes nothing has a loss of ln K, which only
    # learning lowers.
    lengths = ("run.steps=60", "run.evaluate_every=60", "run.checkpoint_every=60")
    config = small_config(*lengths, "dino.centering=sinkhorn", "crops.rotation_degrees=0.0")
    run(config, image_folder, tmp_path / "run")
    first, last = losses(tmp_path / "run")[:10], losses(tmp_path / "run")[-10:]
    assert np.mean([loss for _, loss in last]) < np.mean([loss for _, loss in first]) - 0.2


def test_a_run_is_not_resumed_on_other_images(image_folder: Path, tmp_path: Path) -> None:
    run(small_config("run.steps=2"), image_folder, tmp_path / "run")
    other = draw_folder(tmp_path / "other", 43)
    with pytest.raises(InputError, match="begun with other images to learn from"):
        run(small_config("run.steps=2"), other, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="begun with other images held out"):
        train(
            small_config("run.steps=2"),
            [open_source(image_folder)],
            tmp_path / "run",
            held_out=open_source(other),
            resume=True,
        )


def test_a_run_whose_list_an_earlier_version_read_is_resumed(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"./images/{i:03d}.jpg\n" for i in range(44)))
    (tmp_path / "images").symlink_to(image_folder)
    run(small_config("run.steps=2"), tmp_path / "list.txt", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    record = yaml.safe_load(config.read_text())
    older = b"".join(f"./images/{i:03d}.jpg\0".encode() for i in range(44))
    assert record["data"]["keys_sha256"] != hashlib.sha256(older).hexdigest()
    record["data"]["keys_sha256"] = hashlib.sha256(older).hexdigest()
    config.write_text(yaml.safe_dump(record))
    run(small_config("run.steps=2"), tmp_path / "list.txt", tmp_path / "run", resume=True)


def test_what_is_refused_leaves_nothing_that_stands_in_the_way(
    image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="lower --batch-size"):
        run(small_config("run.batch_size=64"), image_folder, tmp_path / "run")
    with refused("There is 1 image to train on, fewer than a batch of 2; add images."):
        run(small_config("run.batch_size=2"), draw_folder(tmp_path / "one", 1), tmp_path / "run")
    run(small_config("run.steps=1"), image_folder, tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        run(small_config(), image_folder, tmp_path / "missing", resume=True)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run(small_config(), image_folder, tmp_path / "file")


def test_a_second_writer_of_a_run_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = WriterLock(tmp_path / "run" / LOCK_FILE)
    with pytest.raises(EnvironmentProblem, match="is being written by process"):
        run(small_config("run.steps=1"), image_folder, tmp_path / "run")
    lock.release()
    run(small_config("run.steps=1"), image_folder, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_one_sentence(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.jpg").write_text("no image")
    others = set(multiprocessing.active_children())
    with pytest.raises(InputError) as caught:
        run(small_config(f"run.workers={workers}"), folder, tmp_path / "run")
    assert str(caught.value).startswith(
        f"None of the 22 images of {folder} can be read. The first: "
    )
    assert str(caught.value).endswith(" is not an image in a format that can be read.")
    assert set(multiprocessing.active_children()) <= others, (
        "workers are gone, though what was raised is held"
    )


def test_a_full_disk_is_named(image_folder: Path, tmp_path: Path) -> None:
    program = f"""
import resource, signal
from collections.abc import Callable
from pathlib import Path
from featkit.sources import open_source
from featkit_train.loop import train
from tests.train.small import small_config
config = small_config("run.steps=1", "run.held_out=0")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
train(config, [open_source({str(image_folder)!r})], Path({str(tmp_path / "run")!r}))
"""
    status, _, error = run_python(program)
    assert status != 0
    assert "EnvironmentProblem" in error.splitlines()[-1]
    assert "File too large" in error.splitlines()[-1]
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_init_is_an_earlier_run_and_refuses_any_other_folder(
    image_folder: Path, tmp_path: Path
) -> None:
    run(small_config("run.steps=2"), image_folder, tmp_path / "first")
    still = ["optim.lr=0.0", "optim.min_lr=0.0", "teacher.momentum=1.0"]
    later = small_config("run.steps=2", f"init={tmp_path / 'first'}", *still)
    run(later, image_folder, tmp_path / "second")
    first, second = (
        load_file(tmp_path / name / "backbone.safetensors") for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(
        InputError, match="holds no checkpoint of a run; name the folder of an earlier run"
    ):
        run(small_config(f"init={tmp_path / 'nothing'}"), image_folder, tmp_path / "third")


SMALLER, LARGER = (
    ("crops.global_size=32", "crops.local_size=16"),
    (
        "crops.global_size=64",
        "crops.local_size=32",
    ),
)


@pytest.mark.parametrize("method", ["ibot", "dinov2"])
def test_a_run_with_larger_crops_starts_with_resampled_positions(
    image_folder: Path, tmp_path: Path, method: str
) -> None:
    run(small_config(f"method={method}", "run.steps=2", *SMALLER), image_folder, tmp_path / "first")
    config = small_config(f"method={method}", "run.steps=2", *LARGER, f"init={tmp_path / 'first'}")
    begun = RunParts(config, [open_source(image_folder)], tmp_path / "begun")
    (tmp_path / "begun").mkdir()
    RunState(begun, Listener()).begin()
    state = load_file(list_checkpoints(tmp_path / "first" / "checkpoints")[-1] / STATE_FILE)
    expected = {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    ours = begun.engine.method.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())
    backbone = begun.engine.method.result
    assert isinstance(backbone, VisionTransformer)
    assert_same_features(
        backbone, stretched(backbone), normalized(draw_images(2, height=64, width=64))
    )

    run(config, image_folder, tmp_path / "second")
    assert [step for step, loss in losses(tmp_path / "second") if np.isfinite(loss)] == [1, 2]
    later, info = load_backbone(tmp_path / "second")
    assert (info.geometry.height, info.geometry.width, info.geometry.resize_to) == (64, 64, 64)
    assert later.state_dict()["patch_positions"].shape == (4, 4, 24), "the table keeps its size"
    for name, tensor in later.state_dict().items():
        assert torch.equal(tensor, expected[f"teacher.backbone.{name}"]) == (tensor.numel() == 0), (
            name
        )


def test_a_run_with_larger_crops_exports_at_their_size(image_folder: Path, tmp_path: Path) -> None:
    run(small_config("method=dinov2", "run.steps=2", *SMALLER), image_folder, tmp_path / "first")
    later = small_config("method=dinov2", "run.steps=2", *LARGER, f"init={tmp_path / 'first'}")
    run(later, image_folder, tmp_path / "second")
    export(ExportRequest(source=str(tmp_path / "second"), out=tmp_path / "m.onnx"))
    backbone, _ = load_backbone(tmp_path / "second")
    assert isinstance(backbone, VisionTransformer)
    embedder = Embedder(tmp_path / "m.onnx")
    assert (embedder.geometry.height, embedder.geometry.width) == (64, 64)
    files = sorted(image_folder.iterdir())[:3]
    prepared = np.stack([embedder.prepare(file) for file in files])
    assert prepared.shape == (3, 64, 64, 3)
    with torch.no_grad():
        expected = F.normalize(stretched(backbone)(normalized(prepared)).class_token, dim=-1)
    np.testing.assert_allclose(embedder.embed(files), expected.numpy(), atol=1e-5)


def stretched(backbone: VisionTransformer) -> VisionTransformer:
    """The same network with positions of 8 × 8 patches of its own, made of its 4 × 4 by torch as
    DINO's code does."""
    table = foreign(backbone.patch_positions.detach().permute(2, 0, 1)[None], 8, 8)[0].permute(
        1, 2, 0
    )
    larger = VisionTransformer(dataclasses.replace(backbone.config, position_grid=8)).eval()
    larger.load_state_dict({**backbone.state_dict(), "patch_positions": table})
    return larger


@torch.no_grad()
def assert_same_features(ours: Backbone, theirs: Backbone, images: Tensor) -> None:
    for name, found, expected in zip(Features._fields, ours(images), theirs(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def normalized(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 as the backbones of these runs take it."""
    mean, std = (
        torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def test_a_plan_is_reported_once_after_the_first_steps(image_folder: Path, tmp_path: Path) -> None:
    plans: list[Plan] = []
    steps = WARM_STEPS + MEASURED_STEPS + 3
    config = small_config(
        f"run.steps={steps}", "run.batch_size=4", "crops.num_local=0", "run.evaluate_every=100"
    )
    train(
        config,
        [open_source(image_folder)],
        tmp_path / "run",
        listener=Listener(on_plan=plans.append),
    )
    (plan,) = plans
    assert plan.steps_left == 3
    assert plan.hours_left == pytest.approx(3 * 4 / plan.images_per_s / 3600)
    assert plan.device == "cpu"
    assert plan.memory_bytes > 1 << 26


def test_device_and_precision_are_what_is_there() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_autocast("float32", torch.device("cpu")) is None
    assert pick_autocast("bfloat16", torch.device("cpu")) is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="no CUDA device"):
            pick_device("cuda")
    with pytest.raises(EnvironmentProblem, match="meta, which does not work"):
        pick_device("meta")
    with pytest.raises(InputError, match="gpu, which torch does not know"):
        pick_device("gpu")
