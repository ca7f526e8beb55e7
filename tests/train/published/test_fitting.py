"""The backbone is found in any file of a training, the remark says whose weights were taken, and
vectors equal the training's own."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from featkit_train.networks.base import Backbone
from featkit_train.published.pretrained import load_pretrained, load_published
from featkit_train.published.zoo import PUBLISHED, Published
from featkit_train.weights import BackboneInfo
from tests.export.backbones import with_depth
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision, import_quietly
from tests.train import published_files as published

NAME = "dinov2_vits14"
DEPTH = 2
State = Mapping[str, Tensor]
HEAD = {
    "mlp.0.weight": torch.ones(8, 384),
    "mlp.0.bias": torch.ones(8),
    "last_layer.weight_g": torch.ones(4, 1),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def _torchvision() -> None:
    allow_torchvision()


@pytest.fixture(scope="module")
def row() -> Published:
    return with_depth(PUBLISHED[NAME], DEPTH)


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """Weights of each branch, by the released names."""
    seeds = {"teacher": 1, "student": 2, "ema": 3}
    return {
        branch: published.official(NAME, published.reference(NAME, depth=DEPTH, seed=seed))
        for branch, seed in seeds.items()
    }


def under(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def in_blocks(word: str, state: State) -> dict[str, Tensor]:
    """A wrapper's word behind the index of each block."""
    return {
        (
            ".".join([*parts[:2], word, *parts[2:]])
            if (parts := name.split("."))[0] == "blocks"
            else name
        ): tensor
        for name, tensor in state.items()
    }


def whose(backbone: Backbone, states: Mapping[str, State]) -> str:
    """The branch whose weights a backbone has, every one of them."""
    from featkit_train.published.key_maps import OFFICIAL
    from featkit_train.published.renaming import rename

    found = backbone.state_dict()
    for branch, state in states.items():
        theirs = rename(state, OFFICIAL, what=branch)
        if all(torch.equal(found[name], tensor) for name, tensor in theirs.items()):
            return branch
    return "nobody"


def load(
    row: Published, path: Path, checkpoint: object, **options: Any
) -> tuple[Backbone, BackboneInfo]:
    torch.save(checkpoint, path / "weights.pth")
    return load_published(row, weights=path / "weights.pth", **options)


# Prefixes

ONE: dict[str, Callable[[State], object]] = {
    "the released teacher_checkpoint.pth": lambda state: {
        "teacher": {**under("backbone.", state), **under("dino_head.", HEAD)}
    },
    "Lightning": lambda state: {
        "state_dict": under("model.", state),
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, wrapped twice": lambda state: {
        "state_dict": under("model._orig_mod.module.backbone.", state)
    },
    "encoder": lambda state: under("encoder.", state),
    "vit and a head": lambda state: {
        **under("vit.", state),
        "classifier.weight": torch.ones(3, 384),
    },
    "a word nobody knows": lambda state: {"x": {"y": under("some.thing.else.", state)}},
    "DeepSpeed": lambda state: {"module": under("module.", state), "global_steps": 3},
    "FSDP in blocks": lambda state: {
        "teacher": under("backbone.", in_blocks("_fsdp_wrapped_module", state))
    },
    "activation checkpointing": lambda state: {
        "teacher": under("backbone.", in_blocks("_checkpoint_wrapped_module", state))
    },
    "compiled blocks": lambda state: in_blocks("_orig_mod", state),
    "compiled, checkpointed and sharded": lambda state: under(
        "_orig_mod.module.", in_blocks("_fsdp_wrapped_module._checkpoint_wrapped_module", state)
    ),
    "a classifier next to it": lambda state: {
        **state,
        "head.weight": torch.ones(3, 384),
        "head.bias": torch.ones(3),
    },
    "fc and a queue": lambda state: {
        **state,
        "fc.weight": torch.ones(3, 384),
        "queue": torch.ones(4, 4),
    },
    "a projector and a predictor": lambda state: {
        **under("backbone.", state),
        **under("projector.", HEAD),
        **under("predictor.", HEAD),
    },
    "an averaged model": lambda state: {**under("module.", state), "n_averaged": torch.tensor(3)},
    "chunks of blocks": lambda state: published.in_chunks(state, blocks_a_chunk=1),
}


@pytest.mark.parametrize("kind", ONE)
def test_the_backbone_is_found_under_its_prefix(
    kind: str, row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    backbone, info = load(row, tmp_path, ONE[kind](states["teacher"]))
    assert whose(backbone, states) == "teacher"
    assert info.name == NAME


def test_a_backbone_found_so_gives_the_networks_own_vectors(row: Published, tmp_path: Path) -> None:
    model = published.reference(NAME, depth=DEPTH)
    backbone, _ = load(
        row, tmp_path, {"state_dict": under("model.backbone.", published.official(NAME, model))}
    )
    images = published.draw_images(14, 3, 5)
    published.assert_same(backbone(images), published.see(model, images))


def test_heads_that_were_left_out_are_said(
    row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    state = states["teacher"]
    _, info = load(
        row, tmp_path, {**state, "head.weight": torch.ones(3, 384), "head.bias": torch.ones(3)}
    )
    assert info.remarks == ("weights.pth: left out head (2 tensors).",)
    _, info = load(
        row, tmp_path, {"teacher": {**under("backbone.", state), **under("dino_head.", HEAD)}}
    )
    assert info.remarks == (
        "weights.pth: read the weights of the teacher under teacher.backbone.",
        "weights.pth: left out dino_head (3 tensors).",
    )
    _, info = load(row, tmp_path, dict(state))
    assert info.remarks == ()


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_what_is_no_head_is_not_left_out(
    prefix: str, row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    for name in ("adapter.weight", "blocks.0.attn.lora_a.weight", "fc_norm.weight"):
        with refused(f"{prefix}{name}", "which the model does not have"):
            load(row, tmp_path, under(prefix, {**states["teacher"], name: torch.ones(384)}))


# Branches

T, S, E = "teacher", "student", "ema"
SEVERAL: dict[str, tuple[Callable[[Mapping[str, State]], object], dict[str | None, str]]] = {
    "DINO and iBOT": (
        lambda s: {T: under("backbone.", s[T]), S: under("module.backbone.", s[S]), "epoch": 3},
        {None: T, T: T, S: S},
    ),
    "DINOv2's model_final.rank_0.pth": (
        lambda s: {
            "model": {
                **under("student.backbone.", s[S]),
                **under("student.dino_head.", HEAD),
                **under("teacher.backbone.", s[T]),
                **under("teacher.dino_head.", HEAD),
            }
        },
        {None: T, T: T, S: S},
    ),
    "DINOv3's": (
        lambda s: {
            "model": {
                **under("model_ema.backbone.", s[E]),
                **under("student.backbone.", s[S]),
                **under("teacher.backbone.", s[T]),
            }
        },
        {None: T, T: T, E: E, S: S},
    ),
    "lightly's benchmarks": (
        lambda s: {
            "state_dict": {
                **under("backbone.", s[T]),
                **under("student_backbone.", s[S]),
                **under("head.", HEAD),
            }
        },
        {None: T, T: T, S: S},
    ),
    "lightly's examples": (
        lambda s: {
            "state_dict": {**under("student_backbone.", s[S]), **under("teacher_backbone.", s[T])}
        },
        {None: T, T: T, S: S},
    ),
    "lightly-train": (
        lambda s: {
            "state_dict": {
                **under("student_embedding_model.wrapped_model._model.", s[S]),
                **under("student_projection_head.layers.", HEAD),
                **under("teacher_embedding_model.wrapped_model._model.", s[T]),
            }
        },
        {None: T, T: T, S: S},
    ),
    "lightly-train's distillation": (
        lambda s: {
            "state_dict": {
                **under("student_embedding_model.wrapped_model._model.", s[S]),
                "student_projection_head.weight": torch.ones(3, 384),
                "teacher_queue": torch.ones(8, 3),
            }
        },
        {None: S, S: S},
    ),
    "momentum": (
        lambda s: {"state_dict": {**under("backbone_momentum.", s[T]), **under("backbone.", s[S])}},
        {None: T, T: T, S: S},
    ),
    "timm": (
        lambda s: {"state_dict": s[S], "state_dict_ema": under("module.", s[E]), "epoch": 1},
        {None: E, E: E, S: S},
    ),
    "model_ema": (lambda s: {"model": s[S], "model_ema": s[E]}, {None: E, E: E, S: S}),
    "one": (lambda s: {"state_dict": s[T]}, {None: T, T: T}),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_each_branch_is_taken_when_it_is_asked_for(
    kind: str, row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    make, expected = SEVERAL[kind]
    checkpoint = make(states)
    for asked in (None, T, E, S):
        if asked in expected:
            backbone, info = load(row, tmp_path, checkpoint, branch=asked)
            assert whose(backbone, states) == expected[asked]
            others = [branch for branch in expected if branch not in (None, expected[asked])]
            assert (
                f"--branch {' or '.join(map(str, others))} takes the others"
                in " ".join(info.remarks)
            ) == bool(others)
            assert info.origin.get("branch", T) == expected[asked]
        else:
            with refused("weights.pth", str(asked), "--branch"):
                load(row, tmp_path, checkpoint, branch=asked)


def test_the_choice_and_the_others_are_said(
    row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    make, _ = SEVERAL["DINO and iBOT"]
    _, info = load(row, tmp_path, make(states))
    assert (
        info.remarks[0]
        == "weights.pth: read the weights of the teacher under teacher.backbone; --branch student"
        " takes the others."
    )
    assert info.origin["branch"] == "teacher"


def test_a_branch_of_another_size_is_not_the_models(
    row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    """Only the student of a distillation has the architecture that was asked for."""
    larger = published.official("dinov2_vitb14", published.reference("dinov2_vitb14", depth=DEPTH))
    backbone, info = load(
        row,
        tmp_path,
        {"teacher": under("backbone.", larger), "student": under("backbone.", states[S])},
    )
    assert whose(backbone, states) == "student"
    assert "of the student" in info.remarks[0]


def test_fsdps_shares_are_told_from_weights(row: Published, tmp_path: Path) -> None:
    with refused("one process's share", "teacher.backbone._flat_param", "teacher_checkpoint.pth"):
        load(row, tmp_path, {"model": {"teacher.backbone._flat_param": torch.ones(100)}})


# Position tables, patches and registers of another size


@pytest.mark.parametrize("form", ["released", "folder"])
@pytest.mark.parametrize("side", [7, 16])
def test_a_position_table_of_another_grid_is_resampled(
    side: int, form: str, row: Published, tmp_path: Path
) -> None:
    model = published.reference(NAME, depth=DEPTH)
    config = copy.copy(model.config)
    config.image_size = side * 14
    small = type(model)(config).eval()
    small.load_state_dict(published.drawn(small.state_dict(), seed=5), assign=True)
    if form == "released":
        torch.save(
            {"teacher": under("backbone.", published.official(NAME, small))},
            tmp_path / "weights.pth",
        )
    else:
        import_quietly("transformers").utils.logging.disable_progress_bar()
        small.save_pretrained(tmp_path)
    backbone, info = load_published(
        row, weights=tmp_path / "weights.pth" if form == "released" else tmp_path
    )
    images = published.draw_images(14, side, side)
    published.assert_same(backbone(images), published.see(small, images))
    assert info.geometry == PUBLISHED[NAME].geometry


@pytest.mark.parametrize("patch", [8, 12, 16])
def test_a_training_with_other_patches_keeps_them(
    patch: int, row: Published, tmp_path: Path
) -> None:
    """The released code's own default is 16, of which no weights were published."""
    config = published.config_of(NAME, depth=DEPTH)
    config.patch_size, config.image_size = patch, 10 * patch
    model = import_quietly("transformers").Dinov2Model(config).eval()
    model.load_state_dict(published.drawn(model.state_dict(), seed=6), assign=True)
    backbone, info = load(row, tmp_path, published.official(NAME, model))
    images = published.draw_images(patch, 10, 10)
    published.assert_same(backbone(images), published.see(model, images))
    assert info.name == f"dinov2_vits{patch}"
    assert info.geometry.patch == backbone.patch == patch
    assert info.geometry.height % patch == 0
    assert abs(info.geometry.height - 224) <= patch
    assert f"patches are {patch} pixels, not the 14 of dinov2_vits14" in " ".join(info.remarks)


def test_another_number_of_registers_is_the_files_own(tmp_path: Path) -> None:
    name = "dinov2_vits14_reg"
    config = published.config_of(name, depth=DEPTH)
    config.num_register_tokens = 7
    model = import_quietly("transformers").Dinov2WithRegistersModel(config).eval()
    model.load_state_dict(published.drawn(model.state_dict(), seed=6), assign=True)
    backbone, _ = load(
        with_depth(PUBLISHED[name], DEPTH), tmp_path, published.official(name, model)
    )
    images = published.draw_images(14, 37, 37)
    published.assert_same(backbone(images), published.see(model, images))


# Files of transformers


@pytest.mark.parametrize("form", ["safetensors", "bin", "in memory"])
@pytest.mark.parametrize(
    "name", ["dino_vits16", "ibot_vits16", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16"]
)
def test_a_model_of_transformers_loads_by_any_of_its_names(
    name: str, form: str, tmp_path: Path
) -> None:
    model = published.reference(name, depth=DEPTH)
    path = tmp_path
    import_quietly("transformers").utils.logging.disable_progress_bar()
    model.save_pretrained(tmp_path)
    if form == "bin":
        load_file = import_quietly("safetensors.torch").load_file
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    elif form == "in memory":
        path = tmp_path / "state.pth"
        torch.save({f"module.{key}": tensor for key, tensor in model.state_dict().items()}, path)
    row = with_depth(PUBLISHED[name], DEPTH)
    backbone, _ = load_published(row, weights=path)
    images = published.draw_images(row.patch, 14, 14)
    published.assert_same(backbone(images), published.see(model, images))


def test_a_folder_of_facebooks_dino_is_known_by_its_config(tmp_path: Path) -> None:
    model = published.reference("dino_vits16")
    import_quietly("transformers").utils.logging.disable_progress_bar()
    model.save_pretrained(tmp_path)
    backbone, info = load_pretrained(str(tmp_path))
    assert info.name == "dino_vits16"
    images = published.draw_images(16, 2, 3)
    published.assert_same(backbone(images), published.see(model, images))


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_a_fine_tuned_classifier_loads_without_its_head(kind: str, tmp_path: Path) -> None:
    name = {
        "Dinov2": "dinov2_vits14",
        "Dinov2WithRegisters": "dinov2_vits14_reg",
        "ViT": "dino_vits16",
    }[kind]
    transformers = import_quietly("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, f"{kind}ForImageClassification")(published.config_of(name)).eval()
    model.load_state_dict(published.drawn(model.state_dict(), seed=4), assign=True)
    model.save_pretrained(tmp_path)
    backbone, info = load_pretrained(str(tmp_path))
    assert info.name == name
    assert "left out classifier" in " ".join(info.remarks)
    images = published.draw_images(backbone.patch, *([37, 37] if "dinov2" in name else [14, 14]))
    body = getattr(model, model.base_model_prefix)
    published.assert_same(backbone(images), published.see(body, images))


# timm


def drawn_timm(arch: str, **options: Any) -> Any:
    model = import_quietly("timm").create_model(arch, **options).eval()
    model.load_state_dict(published.drawn(model.state_dict(), seed=0), assign=True)
    return model


@pytest.mark.parametrize("arch", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_timms_copies_of_dinov2_load_as_its_rows(arch: str, tmp_path: Path) -> None:
    model = drawn_timm(arch, num_classes=0, depth=1, img_size=224)
    name = "dinov2_vits14_reg" if "reg4" in arch else "dinov2_vits14"
    backbone, _ = load(with_depth(PUBLISHED[name], 1), tmp_path, model.state_dict())
    images = published.draw_images(14, 16, 16)
    tokens = model.forward_features(images)
    published.assert_same(
        backbone(images), published.Seen(tokens[:, 0], tokens[:, model.num_prefix_tokens :])
    )


def test_timms_copy_of_the_gated_dinov2_loads_as_its_row(tmp_path: Path) -> None:
    model = drawn_timm(
        "vit_giant_patch14_dinov2",
        num_classes=0,
        depth=1,
        embed_dim=48,
        num_heads=2,
        mlp_ratio=4,
        img_size=56,
    )
    arch = {"width": 48, "num_heads": 2, "depth": 1, "mlp_width": 96}
    row = dataclasses.replace(
        PUBLISHED["dinov2_vitg14"], arch={**PUBLISHED["dinov2_vitg14"].arch, **arch}, width=48
    )
    backbone, _ = load(row, tmp_path, model.state_dict())
    images = published.draw_images(14, 4, 4)
    tokens = model.forward_features(images)
    published.assert_same(backbone(images), published.Seen(tokens[:, 0], tokens[:, 1:]))


@pytest.mark.parametrize("arch", ["test_vit.r160_in1k", "test_vit2.r160_in1k"])
def test_a_timm_model_of_another_size_takes_that_size(arch: str, tmp_path: Path) -> None:
    model = drawn_timm(arch, img_size=224)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model_best.pth.tar")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    backbone, info = load_pretrained(f"timm:{arch}", weights=tmp_path / "weights.pth")
    assert (info.geometry.height, info.geometry.width) == (224, 224)
    assert "224 × 224" in " ".join(info.remarks)
    images = published.draw_images(backbone.patch, 224 // backbone.patch, 224 // backbone.patch)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone(images).class_token, pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_folder_as_timm_keeps_it_on_the_hub_loads_by_its_path(form: str, tmp_path: Path) -> None:
    model = drawn_timm("test_vit", img_size=96, num_classes=7)
    settings = {
        "tag": "mine",
        "input_size": [3, 96, 96],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "license": "mit",
    }
    config = {
        "architecture": "test_vit",
        "num_classes": 7,
        "model_args": {"img_size": 96},
        "pretrained_cfg": settings,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    if form == "safetensors":
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    else:
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    backbone, info = load_pretrained(str(tmp_path))
    assert (info.name, info.family, info.license) == ("test_vit.mine", "timm", "mit")
    assert (info.geometry.height, info.geometry.interpolation, info.geometry.mean) == (
        96,
        "bilinear",
        (0.5, 0.5, 0.5),
    )
    images = published.draw_images(backbone.patch, 96 // backbone.patch, 96 // backbone.patch)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone(images).class_token, pooled, rtol=1e-4, atol=1e-4)


# Lightning itself


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_checkpoint_loads(
    row: Published, states: Mapping[str, State], tmp_path: Path
) -> None:
    lightning = import_quietly("pytorch_lightning")
    omegaconf = import_quietly("omegaconf")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.save_hyperparameters({"config": config})
            self.teacher_backbone = torch.nn.Linear(2, 2)

        def training_step(self, batch: Any, _index: int) -> Tensor:
            loss: Tensor = self.teacher_backbone(batch[0]).sum()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"] = {
                **under("teacher_backbone.", states[T]),
                **under("student_backbone.", states[S]),
            }
            checkpoint["lightly_train"] = {
                "models": {"model": torch.nn.Linear(2, 2)},
                "version": "0.18",
            }

    config = omegaconf.OmegaConf.create({"lr": 0.1, "crops": {"sizes": [224, 96]}})
    with torch.enable_grad():
        trainer = lightning.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 2)))
        trainer.fit(Module(config), data)
    (path,) = tmp_path.rglob("*.ckpt")
    with pytest.raises(Exception, match="weights_only"):  # torch's own unpickler refuses it
        torch.load(path)
    assert whose(load_published(row, weights=path)[0], states) == "teacher"
    assert whose(load_published(row, weights=path, branch="student")[0], states) == "student"
