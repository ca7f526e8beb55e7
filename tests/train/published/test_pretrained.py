"""Published weights give the published network: its class token and patch tokens, from every form
its files come in.

The references are other people's networks with drawn weights (see published.py), so that nothing
has to be fetched. The smallest of each family is whole, the others are of two blocks.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featkit_train.networks.base import Backbone
from featkit_train.published import pretrained
from featkit_train.published.pretrained import load_pretrained, load_published
from featkit_train.published.timm_preprocessing import timm_geometry
from featkit_train.published.weight_files import INDEX, SAFETENSORS
from featkit_train.published.zoo import PUBLISHED, Published
from featkit_train.weights import BackboneInfo, save_backbone
from tests.export.backbones import CONFIGS, drawn_backbone, make_run, with_depth
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision, import_quietly
from tests.train import published_files as published

SMALLEST = {"dino_vits16", "ibot_vits16", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16"}
# of the 7B two blocks are 0.4 billion parameters
LARGE = {"dinov3_vit7b16", "dinov3_vit7b16_sat", "dinov2_vitg14_reg"}
Asked = list[tuple[Published, dict[str, Any]]]
FOREIGN = (3, 5)  # patches of an image that is not square


def by_size(names: Any) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in names]


VITS = by_size(name for name, row in PUBLISHED.items() if row.kind == "vit")
CONVNEXTS = [name for name, row in PUBLISHED.items() if row.kind == "convnext"]
FOLDERS = by_size(
    row.name
    for row in PUBLISHED.values()
    if row.kind == "vit" and (row.hub or "").startswith("facebook/")
)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that is gone after the test: pytest keeps tmp_path of three runs, which would be
    gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def _torchvision() -> None:
    allow_torchvision()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two that share their cores with other work wait for each other: a product of 16 tokens took
    30 times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def shallow(name: str) -> tuple[Published, int | None]:
    """Return a row with as many blocks as its reference."""
    depth = None if name in SMALLEST else 2
    return (PUBLISHED[name] if depth is None else with_depth(PUBLISHED[name], depth)), depth


def convnext(name: str) -> tuple[Published, int | None]:
    """The smallest, or one with a block in each stage."""
    row = PUBLISHED[name]
    if name == "dinov3_convnext_tiny":
        return row, None
    return dataclasses.replace(row, arch={**row.arch, "depths": (1, 1, 1, 1)}), 1


def assert_is(backbone: Backbone, model: Any, rows: int, columns: int, *, batch: int = 1) -> None:
    """Equal class token and patch tokens, in the places they belong to."""
    images = published.draw_images(backbone.patch, rows, columns, batch=batch)
    features = backbone(images)
    assert features.patch_tokens.shape[1:3] == (rows, columns)
    published.assert_same(features, published.see(model, images))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Record the arguments of load_published instead of loading."""
    calls: Asked = []
    monkeypatch.setattr(
        pretrained, "load_published", lambda row, **given: calls.append((row, given))
    )
    return calls


def assert_equal_weights(ours: Backbone, theirs: Backbone) -> None:
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def save_official(folder: Path, name: str, *, depth: int | None = 2, seed: int = 0) -> Path:
    path = folder / f"{name}-{seed}.pth"
    torch.save(published.official(name, published.reference(name, depth=depth, seed=seed)), path)
    return path


def save_folder(folder: Path, model: Any, **options: Any) -> Path:
    """Save a model as transformers does, without its progress bar."""
    import_quietly("transformers").utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


# The released files


@pytest.mark.parametrize("name", VITS)
def test_a_released_file_gives_the_familys_vit(name: str, scratch: Path) -> None:
    row, depth = shallow(name)
    model = published.reference(name, depth=depth)
    torch.save(published.official(name, model), scratch / "weights.pth")
    backbone, info = load_published(row, weights=scratch / "weights.pth")
    assert_is(backbone, model, *FOREIGN, batch=2)
    if name in SMALLEST and row.patch == 16:
        assert_is(backbone, model, 14, 14)
    assert not backbone.training
    assert (info.name, info.family, info.geometry, info.license) == (
        name,
        row.family,
        row.geometry,
        row.license,
    )
    assert info.origin["source"] == row.source
    assert info.origin["file"] == "weights.pth"
    assert len(info.origin["sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "side"), [("dino_vits8", 28), ("dinov2_vits14", 37), ("dinov2_vits14_reg", 37)]
)
def test_a_long_position_table_is_kept_at_its_own_size(name: str, side: int, scratch: Path) -> None:
    model = published.reference(name, depth=1)
    torch.save(published.official(name, model), scratch / "weights.pth")
    backbone, _ = load_published(with_depth(PUBLISHED[name], 1), weights=scratch / "weights.pth")
    assert_is(backbone, model, side, side)


@pytest.mark.parametrize("name", CONVNEXTS)
def test_a_released_file_gives_the_familys_convnext(name: str, scratch: Path) -> None:
    row, depth = convnext(name)
    model = published.reference(name, depth=depth)
    torch.save(published.official(name, model), scratch / "weights.pth")
    backbone, _ = load_published(row, weights=scratch / "weights.pth")
    assert_is(backbone, model, 2, 3)


@pytest.mark.parametrize("with_classifier", [False, True])
def test_a_released_resnet_keeps_its_running_statistics(
    with_classifier: bool, scratch: Path
) -> None:
    model = published.reference("dino_resnet50")
    torch.save(
        model.state_dict() if with_classifier else published.official("dino_resnet50", model),
        scratch / "weights.pth",
    )
    backbone, info = load_pretrained("dino_resnet50", weights=scratch / "weights.pth")
    assert_is(backbone, model, 2, 3)
    assert backbone.state_dict()["body.bn1.num_batches_tracked"] == 7
    assert info.name == "dino_resnet50"


@pytest.mark.parametrize(("name", "masked"), [("dino_vits16", False), ("ibot_vits16", True)])
def test_a_full_checkpoint_gives_the_teacher_or_the_student(
    name: str, masked: bool, scratch: Path
) -> None:
    row = with_depth(PUBLISHED[name], 2)
    teacher, student = (published.reference(name, depth=2, seed=seed) for seed in (1, 2))
    checkpoint = published.full_checkpoint(
        published.official(name, teacher), published.official(name, student), masked=masked
    )
    torch.save(checkpoint, scratch / "full.pth")
    assert_is(load_published(row, weights=scratch / "full.pth")[0], teacher, *FOREIGN)
    assert_is(
        load_published(row, weights=scratch / "full.pth", branch="teacher")[0], teacher, *FOREIGN
    )
    assert_is(
        load_published(row, weights=scratch / "full.pth", branch="student")[0], student, *FOREIGN
    )


def test_a_full_checkpoint_of_a_resnet_gives_its_branch(scratch: Path) -> None:
    state = published.official("dino_resnet50", published.reference("dino_resnet50"))
    student = {name: tensor + 1 for name, tensor in state.items()}
    checkpoint = {
        "teacher": {f"backbone.{name}": tensor for name, tensor in state.items()},
        "student": {f"module.backbone.{name}": tensor for name, tensor in student.items()},
    }
    torch.save(checkpoint, scratch / "full.pth")
    for branch, expected in (("teacher", state), ("student", student)):
        backbone, _ = load_pretrained("dino_resnet50", weights=scratch / "full.pth", branch=branch)
        theirs = {f"body.{name}": tensor for name, tensor in expected.items()}
        torch.testing.assert_close(dict(backbone.state_dict()), theirs, rtol=0, atol=0)


def test_ibots_teacher_comes_under_state_dict(scratch: Path) -> None:
    model = published.reference("ibot_vits16", depth=2)
    torch.save(
        {"state_dict": published.official("ibot_vits16", model)}, scratch / "checkpoint_teacher.pth"
    )
    backbone, _ = load_published(
        with_depth(PUBLISHED["ibot_vits16"], 2), weights=scratch / "checkpoint_teacher.pth"
    )
    assert_is(backbone, model, *FOREIGN)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_blocks_in_chunks_are_the_same_blocks(name: str, scratch: Path) -> None:
    model = published.reference(name, depth=3)
    chunked = published.in_chunks(published.official(name, model), blocks_a_chunk=2)
    assert {"blocks.0.1.norm1.weight", "blocks.1.2.norm1.weight"} <= set(chunked)
    teacher = {f"backbone.{key}": tensor for key, tensor in chunked.items()}
    heads = {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.mlp.0.weight": torch.ones(2, 2)}
    torch.save(chunked, scratch / "chunked.pth")
    torch.save({"teacher": {**teacher, **heads}}, scratch / "teacher_checkpoint.pth")
    for file in ("chunked.pth", "teacher_checkpoint.pth"):
        backbone, _ = load_published(with_depth(PUBLISHED[name], 3), weights=scratch / file)
        assert_is(backbone, model, *FOREIGN)


def test_periods_of_a_file_are_used_as_they_were_rounded(scratch: Path) -> None:
    model = published.reference("dinov3_vits16", depth=2)
    state = published.official("dinov3_vits16", model)
    rounded = state["rope_embed.periods"].bfloat16()
    assert not torch.equal(rounded.float(), state["rope_embed.periods"])
    torch.save({**state, "rope_embed.periods": rounded}, scratch / "weights.pth")
    backbone, _ = load_published(
        with_depth(PUBLISHED["dinov3_vits16"], 2), weights=scratch / "weights.pth"
    )
    model.rope_embeddings.inv_freq = 1 / rounded.float()
    assert_is(backbone, model, *FOREIGN)


# Folders of Hugging Face's


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_transformers_gives_the_same_vit(name: str, scratch: Path) -> None:
    model = published.reference(name, depth=2)
    backbone, info = load_published(
        with_depth(PUBLISHED[name], 2), weights=save_folder(scratch, model)
    )
    assert_is(backbone, model, *FOREIGN)
    assert info.origin["sha256"]


@pytest.mark.parametrize("name", CONVNEXTS)
def test_a_folder_of_transformers_gives_the_same_convnext(name: str, scratch: Path) -> None:
    row, depth = convnext(name)
    model = published.reference(name, depth=depth)
    backbone, _ = load_published(row, weights=save_folder(scratch, model))
    assert_is(backbone, model, 2, 3)


@pytest.mark.parametrize(
    "name", ["dinov2_vits14_reg", "dinov3_vits16plus", "dinov3_convnext_small"]
)
def test_a_folder_in_several_files_is_the_same_backbone(name: str, scratch: Path) -> None:
    row, depth = convnext(name) if "convnext" in name else (with_depth(PUBLISHED[name], 2), 2)
    model = published.reference(name, depth=depth)
    one, _ = load_published(row, weights=save_folder(scratch / "one", model))
    several, _ = load_published(
        row, weights=save_folder(scratch / "several", model, max_shard_size="3MB")
    )
    assert (scratch / "several" / INDEX).is_file()
    assert not (scratch / "several" / SAFETENSORS).exists()
    assert len(list((scratch / "several").glob("model-*.safetensors"))) > 2
    assert_equal_weights(several, one)


@pytest.mark.parametrize(
    "name", ["dinov2_vits14", "dinov3_vits16", "dinov3_vits16plus", "dinov3_convnext_base"]
)
def test_weights_in_bfloat16_become_the_same_numbers_in_float32(name: str, scratch: Path) -> None:
    row, depth = convnext(name) if "convnext" in name else (with_depth(PUBLISHED[name], 2), 2)
    model = published.reference(name, depth=depth)
    coarse = {key: tensor.bfloat16() for key, tensor in model.state_dict().items()}
    model.load_state_dict(coarse, assign=True)
    folder = save_folder(scratch, model)
    stored = load_file(folder / SAFETENSORS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model.load_state_dict({key: tensor.float() for key, tensor in coarse.items()}, assign=True)
    backbone, _ = load_published(row, weights=folder)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert_is(backbone, model, *((2, 3) if "convnext" in name else FOREIGN))


@pytest.mark.parametrize(
    "name", ["dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "dinov3_convnext_tiny"]
)
def test_a_folder_is_known_by_its_config_and_loads_by_its_path(name: str, scratch: Path) -> None:
    model = published.reference(name)
    backbone, info = load_pretrained(str(save_folder(scratch, model)))
    assert info.name == name
    assert_is(backbone, model, 1, 2)


@pytest.mark.parametrize(
    "name", [row.name for row in PUBLISHED.values() if (row.hub or "").startswith("facebook/")]
)
def test_every_published_folder_is_known_by_its_config(
    name: str, tmp_path: Path, asked: Asked
) -> None:
    row = PUBLISHED[name]
    published.config_of(name).save_pretrained(tmp_path)
    kind = type(published.config_of(name)).__name__
    assert (
        json.loads((tmp_path / "config.json").read_text())["model_type"].replace("_", "")
        == kind.removesuffix("Config").lower()
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": list(row.geometry.mean)})
    )
    load_pretrained(str(tmp_path))
    assert asked == [(row, {"weights": tmp_path, "branch": None, "quiet": False})]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 400}, ("width 400", "12 blocks")),
        ({"num_hidden_layers": 11}, ("width 384", "11 blocks")),
        ({"num_register_tokens": 2}, ("dinov2_with_registers",)),
        ({"model_type": "vit"}, ("a vit",)),
        ({"model_type": None}, ("has no model_type",)),
    ],
)
def test_a_folder_of_an_unpublished_size_is_refused(
    change: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    published.config_of("dinov2_vits14_reg").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(tmp_path, "featkit export --list", *words):
        load_pretrained(str(tmp_path))


def test_a_satellite_folder_is_recognized_by_its_statistics(tmp_path: Path, asked: Asked) -> None:
    published.config_of("dinov3_vitl16").save_pretrained(tmp_path)
    load_pretrained(str(tmp_path))
    place = tmp_path / "preprocessor_config.json"
    place.write_text(
        json.dumps({"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]})
    )
    load_pretrained(str(tmp_path))
    place.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))  # of a fine-tuned one
    load_pretrained(str(tmp_path))
    assert [row.name for row, _ in asked] == ["dinov3_vitl16", "dinov3_vitl16_sat", "dinov3_vitl16"]


# timm


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("vit_small_patch16_224", "dino_vits16"),
        ("vit_small_patch8_224", "dino_vits8"),
        ("vit_base_patch8_224", "dino_vitb8"),
    ],
)
def test_timms_copies_of_dino_are_what_the_hub_gives(arch: str, name: str, scratch: Path) -> None:
    model = import_quietly("timm").create_model(arch, num_classes=0, depth=1).eval()
    model.load_state_dict(published.drawn(model.state_dict(), seed=0), assign=True)
    save_file(model.state_dict(), scratch / SAFETENSORS)
    backbone, _ = load_published(with_depth(PUBLISHED[name], 1), weights=scratch)
    images = published.draw_images(backbone.patch, 224 // backbone.patch, 224 // backbone.patch)
    tokens = model.forward_features(images)
    published.assert_same(backbone(images), published.Seen(tokens[:, 0], tokens[:, 1:]))


def timm_features(model: Any, images: Tensor) -> published.Seen:
    """Return timm's own outputs: the input of its classifier, and its last feature map."""
    found = model.forward_features(images)
    pooled = model.forward_head(found, pre_logits=True)
    maps = (
        found
        if found.ndim == 4
        else model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    )
    return published.Seen(pooled, maps.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("form", ["safetensors", "pth", "without a classifier"])
@pytest.mark.parametrize(
    "arch",
    [
        "test_vit.r160_in1k",
        "test_vit2.r160_in1k",
        "test_convnext.r160_in1k",
        "test_efficientnet.r160_in1k",
        "test_resnet.r160_in1k",
    ],
)
def test_timms_own_networks_are_timms(arch: str, form: str, scratch: Path) -> None:
    model = import_quietly("timm").create_model(arch).eval()
    state = published.drawn(model.state_dict(), seed=0)
    model.load_state_dict(state, assign=True)
    path = scratch / ("weights.pth" if form == "pth" else SAFETENSORS)
    classifier = model.pretrained_cfg["classifier"]
    if form == "without a classifier":
        state = {
            name: tensor for name, tensor in state.items() if not name.startswith(f"{classifier}.")
        }
        assert len(state) == len(model.state_dict()) - 2
    if form == "pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    backbone, info = load_pretrained(f"timm:{arch}", weights=path)
    side = model.pretrained_cfg["input_size"][1] // backbone.patch
    images = published.draw_images(backbone.patch, side, side)
    published.assert_same(backbone(images), timm_features(model, images))
    if "vit" not in arch:
        images = published.draw_images(backbone.patch, 2, 3)
        published.assert_same(backbone(images), timm_features(model, images))
    assert (info.name, info.family, info.license) == (arch, "timm", "apache-2.0")
    assert info.origin["source"] == f"hf.co/timm/{arch}"


def test_timms_geometry_is_what_timm_does_at_evaluation() -> None:
    timm = import_quietly("timm")
    cases = [
        "test_vit.r160_in1k",
        "resnet10t.c3_in1k",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_base_patch16_siglip_224.webli",
    ]
    for arch in cases:
        settings = timm.get_pretrained_cfg(arch).to_dict()
        transform = import_quietly("timm.data").create_transform(
            **import_quietly("timm.data").resolve_data_config({}, pretrained_cfg=settings)
        )
        geometry = timm_geometry(settings, 16)
        resize, normalize = transform.transforms[0], transform.transforms[-1]
        assert tuple(geometry.mean) == pytest.approx(tuple(normalize.mean.tolist()))
        assert tuple(geometry.std) == pytest.approx(tuple(normalize.std.tolist()))
        assert geometry.interpolation == str(resize.interpolation.value)
        if geometry.resize == "shorter_side":
            assert geometry.resize_to == resize.size
            assert transform.transforms[1].size == (geometry.height, geometry.width)
        else:
            assert resize.size == (geometry.height, geometry.width)
    with refused("nearest"):
        timm_geometry({**settings, "interpolation": "nearest"}, 16)


# How a folder prepares its images


@pytest.mark.parametrize("side", [518, 256, 384])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_folders_own_preprocessing_is_its_geometry(side: int, file: str, scratch: Path) -> None:
    folder = save_folder(scratch, published.reference("dinov2_vits14"))
    values = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": side + 20},
        "crop_size": side,
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / file).write_text(
        json.dumps(values if file.startswith("pre") else {"image_processor": values})
    )
    default = PUBLISHED["dinov2_vits14"].geometry
    expected = dataclasses.replace(
        default,
        height=side,
        width=side,
        resize_to=side + 20,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        rounding="down",
    )
    for name, weights in (
        (str(folder), None),
        ("dinov2_vits14", folder),
        ("dinov2_vits14", folder / "model.safetensors"),
    ):
        _, info = load_pretrained(name, weights=weights)
        assert info.geometry == expected
        assert info.origin["preprocessing"] == file


def test_a_folder_that_says_nothing_has_the_familys_recipe(scratch: Path) -> None:
    folder = save_folder(scratch, published.reference("dinov2_vits14"))
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    _, info = load_pretrained(str(folder))
    assert info.geometry == PUBLISHED["dinov2_vits14"].geometry
    assert "preprocessing" not in info.origin


def test_a_folder_that_no_geometry_expresses_is_refused_by_name(scratch: Path) -> None:
    folder = save_folder(scratch, published.reference("dinov2_vits14"))
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "BitImageProcessor", "do_pad": true}'
    )
    with refused("preprocessor_config.json", "do_pad True"):
        load_pretrained(str(folder))


# Memory


@pytest.mark.parametrize("form", ["pth", "safetensors", "folder"])
@pytest.mark.parametrize("what", ["removed", "overwritten", "cut"])
def test_weights_stay_what_they_were_when_the_file_goes(
    what: str, form: str, scratch: Path
) -> None:
    name = "dinov2_vits14"
    row = with_depth(PUBLISHED[name], 1)
    model = published.reference(name, depth=1)
    path = file = scratch / f"weights.{form}"
    if form == "folder":
        file = save_folder(path, model) / SAFETENSORS
    elif form == "pth":
        torch.save(published.official(name, model), path)
    else:
        save_file(published.official(name, model), path)
    backbone, _ = load_published(row, weights=path)
    if what == "removed":
        file.unlink()
    else:
        with file.open("r+b") as stream:
            if what == "cut":
                stream.truncate(0)
            else:
                stream.write(b"\x7f" * file.stat().st_size)
    assert_is(backbone, model, *FOREIGN)


@pytest.mark.parametrize(
    ("value", "words"), [("nan", "NaN"), ("inf", "infinity"), ("-inf", "infinity")]
)
def test_weights_that_are_not_finite_are_refused_by_name(
    value: str, words: str, scratch: Path
) -> None:
    path = save_official(scratch, "dino_vits16")
    state = torch.load(path)
    state["blocks.1.mlp.fc1.weight"][3, 5] = float(value)
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()}}, path)
    with refused(path, f"{words} in teacher.backbone.blocks.1.mlp.fc1.weight"):
        load_published(with_depth(PUBLISHED["dino_vits16"], 2), weights=path)


def test_float64_too_large_for_float32_is_refused(scratch: Path) -> None:
    path = save_official(scratch, "dino_vits16")
    state = torch.load(path)
    state["norm.bias"] = state["norm.bias"].double().fill_(1e300)
    torch.save(state, path)
    with refused(path, "infinity in norm.bias"):
        load_published(with_depth(PUBLISHED["dino_vits16"], 2), weights=path)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "complex64"])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_numbers_that_mean_something_else_are_refused_by_type(
    kind: str, form: str, scratch: Path
) -> None:
    state = torch.load(save_official(scratch, "dino_vits16"))
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].to(getattr(torch, kind))
    path = scratch / f"coarse.{form}"
    if form == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    with refused(path, "blocks.0.attn.qkv.weight", kind):
        load_published(with_depth(PUBLISHED["dino_vits16"], 2), weights=path)


def test_no_two_weights_share_their_memory(scratch: Path) -> None:
    backbone, _ = load_published(
        with_depth(PUBLISHED["dino_vits16"], 2), weights=save_official(scratch, "dino_vits16")
    )
    places = [
        tensor.untyped_storage().data_ptr()
        for tensor in backbone.state_dict().values()
        if tensor.numel()
    ]
    assert len(set(places)) == len(places)
    assert all(
        parameter.requires_grad and not parameter.is_meta for parameter in backbone.parameters()
    )


# Refusals


@pytest.mark.parametrize(
    ("file", "read_as", "words"),
    [
        (
            "dinov2_vits14",
            "dino_vits16",
            ("LayerScale", "no LayerScale", "blocks.0.ls1.gamma", "which the model does not have"),
        ),
        ("dino_vits16", "dinov2_vits14", ("lacks blocks.0.scale1.gamma", "4 of", "no LayerScale")),
        (
            "dinov3_vits16",
            "dinov2_vits14_reg",
            ("lacks class_position, patch_positions", "rotary positions", "37 × 37"),
        ),
        (
            "dinov3_vits16plus",
            "dinov3_vits16",
            ("a SwiGLU MLP", "a plain MLP", "lacks blocks.0.mlp.fc1.weight"),
        ),
        ("dinov2_vits14", "dinov2_vits14_reg", ("no registers", "4 registers")),
        ("dinov2_vits14_reg", "dinov2_vits14", ("register_tokens", "4 registers", "no registers")),
        (
            "dino_vits16",
            "ibot_vitb16",
            ("cls_token", (1, 1, 384), (1, 1, 768), "width 384", "width 768"),
        ),
        ("dinov3_convnext_tiny", "dinov3_vits16", ("names begin with stages.",)),
        ("dino_resnet50", "dino_vits16", ("names begin with layer1.0.", "It fits dino_resnet50")),
        ("dino_vits16", "dino_resnet50", ("names begin with", "cls_token")),
        ("dino_vits16", "dinov3_convnext_tiny", ("names begin with", "cls_token")),
    ],
)
def test_another_models_file_is_refused_with_what_differs(
    file: str, read_as: str, words: tuple[object, ...], scratch: Path
) -> None:
    path = save_official(scratch, file, depth=1 if "convnext" in file else 2)
    row = PUBLISHED[read_as]
    with refused(path, read_as, *words):
        load_published(with_depth(row, 2) if row.kind == "vit" else row, weights=path)


@pytest.mark.parametrize(
    ("file", "read_as", "fits"),
    [
        ("dinov2_vits14", "dinov2_vitb14", "dinov2_vits14"),
        ("dinov2_vits14", "dinov2_vits14_reg", "dinov2_vits14"),
        ("dinov2_vits14_reg", "dinov2_vits14", "dinov2_vits14_reg"),
        ("dino_vits16", "dino_vits8", "dino_vits16 or ibot_vits16"),
        ("dinov3_vits16", "dinov2_vits14_reg", "dinov3_vits16"),
        ("dino_vits16", "dino_resnet50", "dino_vits16 or ibot_vits16"),
    ],
)
def test_the_model_that_a_file_fits_is_named(
    file: str, read_as: str, fits: str, scratch: Path
) -> None:
    path = save_official(scratch, file, depth=None)
    with refused(path, read_as, f"fits {fits}: use that name"):
        load_pretrained(read_as, weights=path)
    with refused(path, f"Its shapes fit {fits}: featkit export {fits.split()[0]} --weights {path}"):
        load_pretrained(str(path))


def test_the_nearest_model_is_named_where_none_fits(scratch: Path) -> None:
    model = published.reference("dinov2_vits14", depth=9)
    torch.save(published.official("dinov2_vits14", model), scratch / "weights.pth")
    with refused(
        "it has width 384, 9 blocks, an MLP of width 1536, and dinov2_vitb14 has width 768, 12"
        " blocks",
        "The nearest published model is dinov2_vits14, with 12 blocks",
    ):
        load_pretrained("dinov2_vitb14", weights=scratch / "weights.pth")


def test_a_file_of_another_depth_is_refused(
    scratch: Path,
) -> None:
    path = save_official(scratch, "dino_vits16", depth=2)
    with refused(
        path,
        "2 blocks",
        "1 block;",
        "blocks.1.norm1.weight",
        "8 more",
        "which the model does not have",
    ):
        load_published(with_depth(PUBLISHED["dino_vits16"], 1), weights=path)
    with refused(
        path, "lacks blocks.2.norm1.weight", "120 of 151", "has 2 blocks", "has 12 blocks"
    ):
        load_published(PUBLISHED["dino_vits16"], weights=path)


@pytest.mark.parametrize("form", ["released", "folder"])
def test_a_missing_a_surplus_or_a_misshapen_tensor_is_named(form: str, scratch: Path) -> None:
    name = "dinov2_vits14"
    row = with_depth(PUBLISHED[name], 2)
    model = published.reference(name, depth=2)
    if form == "released":
        state, norm = published.official(name, model), "blocks.1.norm2.bias"
    else:
        state, norm = (
            load_file(save_folder(scratch / "whole", model) / SAFETENSORS),
            "encoder.layer.1.norm2.bias",
        )

    def load(**changes: Tensor | None) -> None:
        changed = {
            key: tensor for key, tensor in {**state, **changes}.items() if tensor is not None
        }
        save_file(changed, scratch / "changed.safetensors")
        load_published(row, weights=scratch / "changed.safetensors")

    load()
    place = scratch / "changed.safetensors"
    with refused(place, name, "lacks blocks.1.norm2.bias"):
        load(**{norm: None})
    with refused(place, name, "cat.weight"):
        load(**{"cat.weight": torch.ones(3)})
    with refused(place, name, f"{norm} is (5,), not (384,)"):
        load(**{norm: torch.ones(5)})
    key = "pos_embed" if form == "released" else "embeddings.position_embeddings"
    with refused(place, name, key, (1, 51, 384), "not a table of a square grid"):
        load(**{key: torch.ones(1, 51, 384)})
    with refused(place, name, f"{key} is (1, 50, 32), not (1, 1370, 384)"):
        load(**{key: torch.ones(1, 50, 32)})


def test_a_misshapen_part_of_queries_keys_and_values_is_named(scratch: Path) -> None:
    folder = save_folder(scratch, published.reference("dinov3_vits16", depth=1))
    state = load_file(folder / SAFETENSORS)
    state["layer.0.attention.k_proj.weight"] = torch.ones(384, 5)
    save_file(state, folder / SAFETENSORS)
    with refused("blocks.0.attention.qkv.weight", (384, 5), "do not fit together"):
        load_published(with_depth(PUBLISHED["dinov3_vits16"], 1), weights=folder)


def test_weights_of_whole_numbers_are_refused(scratch: Path) -> None:
    path = save_official(scratch, "dino_vits16")
    state = torch.load(path)
    state["norm.bias"] = torch.ones(384, dtype=torch.int64)
    torch.save(state, path)
    with refused(path, "norm.bias", "int64"):
        load_published(with_depth(PUBLISHED["dino_vits16"], 2), weights=path)


def test_timms_networks_are_refused_alike(scratch: Path) -> None:
    state = import_quietly("timm").create_model("test_vit").state_dict()
    del state["norm.weight"]
    save_file({**state, "cat.weight": torch.ones(1)}, scratch / SAFETENSORS)
    with refused(
        scratch / SAFETENSORS,
        "lacks body.norm.weight (1 of",
        "cat.weight, which the model does not have",
    ):
        load_pretrained("timm:test_vit.r160_in1k", weights=scratch / SAFETENSORS)


# Names


def test_every_name_of_a_row_loads_it(scratch: Path, asked: Asked) -> None:
    for row in PUBLISHED.values():
        for name in (row.name, *row.aliases, *filter(None, [row.hub])):
            load_pretrained(name, weights=scratch, branch="student", quiet=True)
            assert asked.pop() == (row, {"weights": scratch, "branch": "student", "quiet": True})


def test_an_alias_loads_the_weights_of_its_row(scratch: Path) -> None:
    model = published.reference("dinov2_vits14")
    torch.save(published.official("dinov2_vits14", model), scratch / "weights.pth")
    backbone, info = load_pretrained("facebook/dinov2-small", weights=scratch / "weights.pth")
    assert info.name == "dinov2_vits14"
    assert_is(backbone, model, 1, 2)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dinov2_vits41", "dinov2_vits14"),
        ("dino-v2-small", "dinov2-small"),
        ("dinov3_vitl61", "dinov3_vitl16"),
    ],
)
def test_an_unknown_name_is_told_its_nearest(name: str, near: str) -> None:
    with refused(name, "similar names", near):
        load_pretrained(name)


def test_a_name_near_to_none_is_refused_without_a_guess() -> None:
    with refused("qqqq", "(featkit export --list shows them)"):
        load_pretrained("qqqq")


def test_a_file_of_weights_alone_is_no_model(scratch: Path) -> None:
    torch.save({"a": torch.ones(1)}, scratch / "weights.pth")
    with refused(scratch / "weights.pth", "--weights"):
        load_pretrained(str(scratch / "weights.pth"))
    save_file({"a": torch.ones(1)}, scratch / "weights.safetensors")
    with refused(scratch / "weights.safetensors"):
        load_pretrained(str(scratch / "weights.safetensors"))


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "config.json"):
        load_pretrained(str(tmp_path))
    published.config_of("dinov2_vits14").save_pretrained(tmp_path)
    with refused(tmp_path, SAFETENSORS):
        load_pretrained(str(tmp_path))


def test_a_run_loads_by_folder_or_file_without_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", config=CONFIGS["dino"], seed=3)
    for place in (run, run / "backbone.safetensors"):
        backbone, info = load_pretrained(str(place))
        assert isinstance(info, BackboneInfo)
        assert info.name == "drawn"
        assert_equal_weights(backbone, drawn_backbone(CONFIGS["dino"], seed=3))
        with refused(place, "--weights"):
            load_pretrained(str(place), weights=tmp_path)


def test_a_run_is_no_weights_of_a_published_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", config=CONFIGS["dino"], seed=3)
    for place in (run, run / "backbone.safetensors"):
        with refused(place, "was written by `featkit train`", "instead of dino_vits16"):
            load_pretrained("dino_vits16", weights=place)


def test_a_diverged_run_is_refused_by_name(tmp_path: Path) -> None:
    backbone = drawn_backbone(CONFIGS["dino"], seed=3)
    backbone.norm.weight[2] = float("nan")
    _, info = load_pretrained(str(make_run(tmp_path / "run", config=CONFIGS["dino"], seed=3)))
    save_backbone(tmp_path / "backbone.safetensors", backbone, info)
    with refused(tmp_path / "backbone.safetensors", "NaN in norm.weight"):
        load_pretrained(str(tmp_path / "backbone.safetensors"))


def test_a_run_without_a_checkpoint_yet_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with refused(tmp_path, "backbone.safetensors"):
        load_pretrained(str(tmp_path))
