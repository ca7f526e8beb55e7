"""Train the cases of test_distributed in one process, and in each of two that run this module."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from featkit.geometry import Geometry
from featkit.sources import open_source
from featkit_train.config import TrainConfig
from featkit_train.engine.checkpoints import Progress, load_checkpoint, save_checkpoint
from featkit_train.engine.step import Engine, seeded_weights
from featkit_train.images.batches import crop_loader
from featkit_train.images.crops import CropDataset, Crops
from featkit_train.images.order import EpochOrder
from featkit_train.log import Log
from featkit_train.loop import train
from featkit_train.methods import METHODS, Labels, Supervised
from featkit_train.networks.classifier import Classifier, build_backbone
from featkit_train.networks.vit import VisionTransformer
from featkit_train.processes.distributed import World, join_world
from featkit_train.settings import from_mapping, parse_settings, with_settings
from featkit_train.watching.listener import Listener
from featkit_train.weights import BackboneInfo, save_backbone
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.small import SMALL, small_config

allow_torchvision()  # timm imports it

STEPS, SAVED_AT = 4, 2
CPU = torch.device("cpu")
OWN_HEAD = "ibot.head={num_prototypes: 12, hidden_width: 32, bottleneck_width: 16}"
# Without BatchNorm, whose statistics are of each process's own images, and key biases, whose
# gradients are noise.
SIZES = "img_size: 32, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2, qkv_bias: false"
VIT = f"arch: 'timm:vit_tiny_patch16_224', options: {{{SIZES}}}"
CASES: dict[str, tuple[str, ...]] = {
    "dino": (),
    "dino, sinkhorn": ("dino.centering=sinkhorn", "model.num_registers=2"),
    "ibot": ("method=ibot",),
    "dinov2, in parts": ("method=dinov2", OWN_HEAD, "engine.accumulate=2"),
    "dinov2, sinkhorn": ("method=dinov2", OWN_HEAD, "dino.centering=sinkhorn"),
    "dinov3, gram": (
        *("method=dinov3", OWN_HEAD, "model.position=rotary", "model.width=32"),
        *("gram.weight=2.0", "gram.size=64", "gram.update_every=2"),
        *("noise.rotary_rescale=2.0", "engine.checkpoint_activations=true"),
    ),
    "distill": ("method=distill", OWN_HEAD, "dino.centering=sinkhorn", "pretrained.head_steps=1"),
    "adapt": ("method=adapt", OWN_HEAD, "pretrained.head_steps=1"),
    "born-again, cwtm": ("method=born-again", f"classifier={{{VIT}}}", "knowledge.mode=cwtm"),
    "born-again, cwtm, in parts": (
        "method=born-again", f"classifier={{{VIT}}}", "knowledge.mode=cwtm", "engine.accumulate=2",
    ),
    "born-again, dkpp": (
        "method=born-again", f"classifier={{{VIT}}}", "knowledge.mode=dkpp", "labels.smoothing=0.1",
    ),
    "internal": ("method=internal", f"classifier={{{VIT}, exits: [1]}}"),
}  # fmt: skip


def method_of(name: str) -> str:
    """Return the method of a case."""
    first = next(iter(CASES[name]), "")
    return first.removeprefix("method=") if first.startswith("method=") else TrainConfig().method


def kinds_of(name: str) -> dict[str, str]:
    """Return how a case's weights are held, with the setting; supervised methods cannot shard
    them."""
    replicated, sharded = {"replicated": "engine.shard=false"}, {"sharded": "engine.shard=true"}
    return (
        replicated
        if issubclass(METHODS[method_of(name)], Supervised)
        else {**replicated, **sharded}
    )


def case_config(name: str, pretrained: Path, *settings: str) -> TrainConfig:
    """Return the config of a case: the part of SMALL that its method reads."""
    method = method_of(name)
    named = (f"pretrained.name={pretrained}",) if method in ("distill", "adapt") else ()
    small: dict[str, Any] = {
        key: value for key, value in SMALL.items() if key not in METHODS[method].unread()
    }
    return from_mapping(
        TrainConfig, with_settings(small, parse_settings([*CASES[name], *named, *settings]))
    )


def labels_of_case(config: TrainConfig, num_images: int) -> Labels | None:
    """Return labels in three classes and a drawn teacher, for supervised methods."""
    if not issubclass(METHODS[config.method], Supervised):
        return None
    with seeded_weights(7):
        teacher = Classifier(build_backbone(config.classifier), 3)
        for head in teacher.heads:
            # sure of some images and not of others
            torch.nn.init.normal_(head.get_parameter("weight"))
    return Labels(classes=("a", "b", "c"), class_ids=np.arange(num_images) % 3, teacher=teacher)


def write_pretrained(folder: Path) -> None:
    """Write a drawn backbone to a folder that `distill` and `adapt` can name."""
    torch.manual_seed(3)
    geometry = Geometry(
        height=32, width=32, resize="shorter_side", resize_to=32, interpolation="bicubic", patch=8,
        mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2),
    )  # fmt: skip
    info = BackboneInfo(name="drawn", family="dino", geometry=geometry, license="none")
    save_backbone(folder / "backbone.safetensors", VisionTransformer(small_config().model), info)


class Player:
    """An engine with its slice of the data."""

    def __init__(self, config: TrainConfig, images: Path, world: World) -> None:
        self.config, self.world = config, world
        self.source = open_source(images)
        labels = labels_of_case(config, len(self.source))
        self.engine = Engine(config, device=CPU, autocast_dtype=None, world=world, labels=labels)
        self.engine.method.start_run()

    def batches(self, first_step: int = 0) -> Iterator[Crops]:
        """Yield this process's slices of the batches."""
        dataset = CropDataset(
            self.source,
            crops=self.config.crops,
            color=self.config.color,
            seed=0,
            cache_bytes=1 << 28,
            spec=self.engine.crop_spec(),
        )
        order = EpochOrder(
            dataset.indices,
            batch_size=self.config.run.batch_size,
            seed=0,
            first_step=first_step,
            last_step=STEPS,
            rank=self.world.rank,
            size=self.world.size,
            micro_batches=self.config.engine.accumulate,
        )
        return iter(crop_loader(dataset, order, workers=0))

    def play(self, first_step: int = 0, last_step: int = STEPS) -> list[Log]:
        """Take steps and return their logs."""
        batches = self.batches(first_step)
        return [self.engine.step(next(batches), step) for step in range(first_step, last_step)]

    def save(self, folder: Path) -> None:
        """Write a checkpoint after SAVED_AT steps."""
        progress = Progress(step=SAVED_AT, scores={"copy_recall": 0.5})
        save_checkpoint(
            folder,
            progress=progress,
            method=self.engine.method,
            optimizer=self.engine.optimizer,
            keep=1,
            world=self.world,
        )

    def load(self, folder: Path) -> None:
        """Restore the checkpoint."""
        path = folder / f"step-{SAVED_AT:08d}"
        progress = load_checkpoint(path, method=self.engine.method, optimizer=self.engine.optimizer)
        assert progress == Progress(step=SAVED_AT, scores={"copy_recall": 0.5})

    def state(self) -> dict[str, Tensor]:
        """Return all weights and centers, whole in the main process."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.engine.method, options=options))


def play_cases(out: Path, images: Path, pretrained: Path) -> None:
    """Run all cases in each of two processes, replicated and sharded."""
    with join_world(CPU) as world:
        for name in CASES:
            for kind, setting in kinds_of(name).items():
                player = Player(case_config(name, pretrained, setting), images, world)
                logs = player.play()
                backbone, state = player.engine.result(), player.state()
                if world.is_main:
                    (out / f"{name}.{kind}.json").write_text(json.dumps(logs))
                    save_file(
                        {key: tensor.contiguous().clone() for key, tensor in state.items()},
                        out / f"{name}.{kind}.st",
                    )
                    result = {
                        key: tensor.contiguous().clone()
                        for key, tensor in backbone.state_dict().items()
                    }
                    save_file(result, out / f"{name}.{kind}.result.st")
        play_checkpoints(out, images, pretrained, world)


def play_checkpoints(out: Path, images: Path, pretrained: Path, world: World) -> None:
    """Save a sharded run, and resume it."""
    sharded = case_config(
        "dinov2, in parts", pretrained, "engine.shard=true", "dino.freeze_last_layer_steps=3"
    )
    replicated = case_config(
        "dinov2, in parts", pretrained, "engine.shard=false", "dino.freeze_last_layer_steps=3"
    )
    logs: dict[str, list[Log]] = {}
    unbroken = Player(sharded, images, world)
    unbroken.play(0, SAVED_AT)
    unbroken.save(out / "by shards")
    logs["unbroken"] = unbroken.play(SAVED_AT)
    resumed = Player(sharded, images, world)
    resumed.load(out / "by shards")
    logs["resumed"] = resumed.play(SAVED_AT)
    as_replicas = Player(replicated, images, world)
    as_replicas.load(out / "by shards")
    as_replicas.save(out / "whole")
    logs["as replicas"] = as_replicas.play(SAVED_AT)
    from_whole = Player(sharded, images, world)
    from_whole.load(out / "whole")
    logs["from whole"] = from_whole.play(SAVED_AT)
    states = unbroken.state(), resumed.state()
    if world.is_main:
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        (out / "checkpoints.json").write_text(json.dumps(logs))


def play_ends(out: Path, images: Path, names: str, ports: str) -> None:
    """Run `train` in each of two processes so that runs end in different ways; write each outcome
    to a file."""
    rank = int(os.environ["RANK"])
    whole_step = Engine.step

    def stopped(engine: Engine, crops: Crops, step: int) -> Log:
        log = whole_step(engine, crops, step)
        if (rank, step) == (1, 2):
            signal.raise_signal(signal.SIGTERM)
        return log

    def broken(engine: Engine, crops: Crops, step: int) -> Log:
        if (rank, step) == (1, 2):
            raise ValueError("no way")
        return whole_step(engine, crops, step)

    scenes = {
        "odd": (["run.batch_size=7"], whole_step, False),
        "stopped": (["engine.shard=true"], stopped, False),
        "resumed": (["engine.shard=true"], whole_step, True),
        "refused": (["engine.shard=true"], whole_step, False),
        "broken": ([], broken, False),
    }
    for name, port in zip(names.split(","), ports.split(","), strict=True):
        settings, step, resume = scenes[name]
        os.environ["MASTER_PORT"] = port
        Engine.step = step  # type: ignore[method-assign, assignment]
        folder = out / ("stopped" if name in ("resumed", "refused") else name)
        heard: list[str] = []
        try:
            train(
                small_config(*settings),
                [open_source(images)],
                folder,
                resume=resume,
                listener=Listener(on_note=heard.append),
            )
            said = ["done", ""]
        except (Exception, SystemExit) as error:
            said = [type(error).__name__, str(error)]
        (out / f"{name}.{rank}.json").write_text(json.dumps([*said, *heard]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 4:
        play_cases(*map(Path, sys.argv[1:]))
    else:
        play_ends(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
        # gloo's threads may still wait for the process that left first, and abort Python's exit
        os._exit(0)
