"""Promises of the files of backbones and classifiers: they come back whole, with what they are and
whence, or are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from featkit.errors import InputError
from featkit_train.networks.borrowed import TimmModel
from featkit_train.networks.classifier import Classifier, build_backbone
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.weights import (
    BACKBONE_FILE,
    CLASSIFIER_FILE,
    FORMAT,
    BackboneInfo,
    load_backbone,
    load_classifier,
    read_header,
    save_backbone,
    save_classifier,
    without_weights,
)
from tests.export.backbones import CONFIGS, drawn_backbone, geometry_for
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.networks import networks
from tests.train.networks.networks import add_tiny_vit, draw_images, drawn

INFO = BackboneInfo(
    name="drawn",
    family="dino",
    geometry=geometry_for(CONFIGS["dino"]),
    license="CC0-1.0",
    origin={"data": "é", "steps": "3"},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A backbone in a run folder."""
    path = tmp_path / "run" / BACKBONE_FILE
    save_backbone(path, drawn_backbone(CONFIGS["dino"]), INFO)
    return path


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same tensors under a changed header."""
    header = dict(read_header(file))
    change(header)
    save_file(load_file(file), file, metadata={"featkit": json.dumps(header)})


@pytest.mark.parametrize("family", CONFIGS)
def test_a_backbone_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    backbone = drawn_backbone(CONFIGS[family])
    save_backbone(tmp_path / BACKBONE_FILE, backbone, INFO)
    images = torch.randn(
        2,
        3,
        2 * backbone.config.patch,
        3 * backbone.config.patch,
        generator=torch.Generator().manual_seed(0),
    )
    for path in (tmp_path, tmp_path / BACKBONE_FILE):
        loaded, info = load_backbone(path)
        assert info == INFO
        assert loaded.config == backbone.config
        assert not loaded.training
        assert loaded.state_dict().keys() == backbone.state_dict().keys()
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name
        with torch.no_grad():
            assert torch.equal(loaded(images).class_token, backbone(images).class_token)


def test_the_header_builds_the_backbone_and_names_its_origin(file: Path) -> None:
    with safe_open(file, framework="pt") as tensors:
        header = json.loads(tensors.metadata()["featkit"])
    assert header == read_header(file)
    assert header == {
        "format": 1,  # so that a featkit that knows nothing else reads it
        "vit": dataclasses.asdict(CONFIGS["dino"]),
        "name": "drawn",
        "family": "dino",
        "geometry": INFO.geometry.to_dict(),
        "license": "CC0-1.0",
        "origin": {"data": "é", "steps": "3"},
    }


def test_equal_weights_and_header_give_equal_bytes(file: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path / "again", drawn_backbone(CONFIGS["dino"]), INFO)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    save_backbone(tmp_path / "again", drawn_backbone(CONFIGS["dino"], seed=1), INFO)
    assert (tmp_path / "again").read_bytes() != file.read_bytes()


def test_an_interrupted_save_leaves_the_older_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def stop(_tensors: dict[str, torch.Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("featkit_train.weights.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_backbone(file, drawn_backbone(CONFIGS["dino"], seed=1), INFO)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("place", ["", "none", BACKBONE_FILE])
def test_where_there_is_no_backbone_the_next_step_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(
        InputError,
        match=r"has no backbone\.safetensors\. Name a folder that `featkit train` has written",
    ):
        load_backbone(tmp_path / place)


@pytest.mark.parametrize("length", [0, 5, 1000, -1000])
def test_a_damaged_file_is_refused_by_name(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match=f"{file} is not a safetensors file") as raised:
        load_backbone(file.parent)
    assert "\n" not in str(raised.value)


def test_a_foreign_file_is_refused_by_name(file: Path) -> None:
    save_file({"x": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{file} was not written by featkit"):
        load_backbone(file)


def test_a_newer_file_is_refused_with_its_format(file: Path) -> None:
    rewrite(file, lambda header: header.update(format=FORMAT + 1, vit={"a word": "of later"}))
    with pytest.raises(
        InputError, match=f"{file} has format 3, newer than the 2 read here. Update featkit"
    ):
        load_backbone(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["vit"].update(width=96),
        lambda header: header["vit"].update(depth=1),
        lambda header: header["vit"].update(num_registers=2),
    ],
)
def test_tensors_that_misfit_the_header_are_refused(
    file: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(file, change)
    with pytest.raises(
        InputError, match=f"{file} holds tensors that do not fit its own header"
    ) as raised:
        load_backbone(file)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(file)) + 300


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.clear(),
        lambda header: header.pop("vit"),
        lambda header: header.pop("license"),
        lambda header: header["vit"].update(color=1),
        lambda header: header["vit"].update(num_heads=5),
        lambda header: header["geometry"].pop("patch"),
    ],
)
def test_a_header_that_is_not_whole_is_refused_in_one_sentence(
    file: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(file, change)
    with pytest.raises(InputError, match=f"{file} has a header that cannot be used") as raised:
        load_backbone(file)
    assert "\n" not in str(raised.value)


def test_a_header_that_is_no_json_is_refused_in_one_sentence(file: Path) -> None:
    save_file(load_file(file), file, metadata={"featkit": "{"})
    with pytest.raises(InputError, match=f"{file} has a header that cannot be used"):
        load_backbone(file)


# Networks of timm's and torchvision's, and classifiers


BUILT = {
    **{name: dataclasses.replace(config, exits=(1,)) for name, config in networks.CONFIGS.items()},
    "no exits": networks.CONFIGS["timm CNN"],
    "from torchvision": networks.CONFIGS["torchvision CNN"],
    # It keeps numbers that no state holds, and torchvision's looks at numbers as it is built.
    "windows": networks.config(
        "timm:swin_tiny_patch4_window7_224", depths=[1, 1, 1, 1], embed_dim=24, img_size=56
    ),
    "widths": networks.config("torchvision:regnet_y_400mf"),
}
SIDES = {"windows": 56}


@pytest.fixture
def _with_torchvision() -> None:
    allow_torchvision()
    add_tiny_vit()


def count_batches(module: torch.nn.Module) -> None:
    """An integer buffer that is neither 0 nor 1."""
    for name, buffer in module.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(2**40 + 7)


@pytest.mark.usefixtures("_with_torchvision")
@pytest.mark.parametrize("name", BUILT)
def test_any_network_comes_back_bit_for_bit_and_nothing_is_drawn(name: str, tmp_path: Path) -> None:
    backbone = drawn(build_backbone(BUILT[name]))
    count_batches(backbone)
    save_backbone(tmp_path / BACKBONE_FILE, backbone, INFO)
    before = torch.random.get_rng_state()
    loaded, info = load_backbone(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (info, loaded.built_from, loaded.training) == (INFO, BUILT[name], False)
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    for key, tensor in backbone.state_dict().items():
        found = loaded.state_dict()[key]
        assert (found.dtype, found.device) == (tensor.dtype, tensor.device), key
        assert torch.equal(tensor, found), key
    assert all(weight.requires_grad for weight in loaded.parameters())
    images = draw_images(height=SIDES.get(name, 32), width=SIDES.get(name, 32))
    with torch.no_grad():
        assert torch.equal(loaded(images).class_token, backbone(images).class_token)
        if isinstance(backbone, ExitedBackbone):
            assert isinstance(loaded, ExitedBackbone)
            assert torch.equal(
                loaded.all_exits(images)[0].class_token, backbone.all_exits(images)[0].class_token
            )


@pytest.mark.usefixtures("_with_torchvision")
def test_a_loaded_network_does_not_change_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / BACKBONE_FILE
    save_backbone(file, drawn(build_backbone(BUILT["no exits"])), INFO)
    loaded, _ = load_backbone(file)
    before = loaded(draw_images()).class_token
    with file.open("r+b") as opened:  # in place: a mapping would see it
        opened.seek(-4096, 2)
        opened.write(b"\0" * 4096)
    assert torch.equal(loaded(draw_images()).class_token, before)


@pytest.mark.usefixtures("_with_torchvision")
def test_a_network_is_built_without_memory_if_possible() -> None:
    module = without_weights(lambda: build_backbone(BUILT["no exits"]))
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    module = without_weights(lambda: build_backbone(BUILT["windows"]))
    assert not any(tensor.is_meta for tensor in module.buffers())


@pytest.mark.usefixtures("_with_torchvision")
def test_the_header_of_another_network_holds_its_config(tmp_path: Path) -> None:
    save_backbone(tmp_path / BACKBONE_FILE, build_backbone(BUILT["timm CNN"]), INFO)
    header = read_header(tmp_path / BACKBONE_FILE)
    assert header["format"] == FORMAT == 2
    assert "vit" not in header
    assert header["classifier"] == {
        "arch": "timm:resnet18",
        "options": networks.SMALL_RESNET,
        "small_stem": True,
        "exits": [1],
    }


@pytest.mark.usefixtures("_with_torchvision")
def test_a_network_that_no_config_builds_is_not_saved(tmp_path: Path) -> None:
    exited = build_backbone(BUILT["timm CNN"])
    assert isinstance(exited, ExitedBackbone)
    for backbone in (TimmModel("test_resnet"), exited.cut(1)):
        with pytest.raises(ValueError, match="was not made by build_backbone"):
            save_backbone(tmp_path / BACKBONE_FILE, backbone, INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def classifier_file(_with_torchvision: None, tmp_path: Path) -> Path:
    """A classifier of three classes in a run folder."""
    path = tmp_path / "run" / CLASSIFIER_FILE
    save_classifier(
        path, drawn(Classifier(build_backbone(BUILT["timm CNN"]), 3)), INFO, ["cat", "dog", "né"]
    )
    return path


def test_a_classifier_is_loaded_with_heads_and_class_names(
    classifier_file: Path,
) -> None:
    expected = drawn(Classifier(build_backbone(BUILT["timm CNN"]), 3))
    for path in (classifier_file, classifier_file.parent):
        before = torch.random.get_rng_state()
        loaded, info, classes = load_classifier(path)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert (info, classes, loaded.num_classes, loaded.training) == (
            INFO,
            ("cat", "dog", "né"),
            3,
            False,
        )
        assert loaded.backbone.built_from == BUILT["timm CNN"]
        with torch.no_grad():
            for ours, theirs in zip(loaded(draw_images()), expected(draw_images()), strict=True):
                assert torch.equal(ours, theirs)


def test_a_classifier_of_featkits_own_transformer_comes_back_too(tmp_path: Path) -> None:
    classifier = drawn(Classifier(drawn_backbone(CONFIGS["dino"]), 2))
    save_classifier(tmp_path / CLASSIFIER_FILE, classifier, INFO, ["a", "b"])
    loaded, _, _ = load_classifier(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(draw_images()).logits, classifier(draw_images()).logits)


def test_names_of_classes_are_as_many_as_logits(classifier_file: Path) -> None:
    with pytest.raises(ValueError, match="2 names of classes for a classifier of 3"):
        save_classifier(classifier_file, load_classifier(classifier_file)[0], INFO, ["cat", "dog"])


def test_classifier_and_backbone_files_are_not_confused(
    classifier_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{classifier_file} holds a classifier with its heads"):
        load_backbone(classifier_file)
    file = tmp_path / BACKBONE_FILE
    save_backbone(file, drawn_backbone(CONFIGS["dino"]), INFO)
    with pytest.raises(InputError, match=f"{file} does not hold heads for classes"):
        load_classifier(file)
    with pytest.raises(
        InputError,
        match=r"has no classifier\.safetensors\. Name the run folder of a `featkit train` method",
    ):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda header: header.update(format=FORMAT + 1),
            "newer than the 2 read here. Update featkit",
        ),
        (
            lambda header: header.update(classes=["cat", "dog"]),
            r"heads\.0\.weight has the shape \(3, 128\), not \(2, 128\)",
        ),
        (
            lambda header: header["classifier"].update(exits=[2]),
            "holds tensors that do not fit its own header",
        ),
        (
            lambda header: header["classifier"].update(exits=[7]),
            "has a header that cannot be used: exits can be after",
        ),
        (
            lambda header: header["classifier"].update(arch="timm:resnet999"),
            "has a header that cannot be used: timm has no",
        ),
        (lambda header: header["classifier"].update(color=1), "has a header that cannot be used"),
        (lambda header: header["classifier"].pop("exits"), "has a header that cannot be used"),
        (lambda header: header.pop("classifier"), "has a header that cannot be used"),
        (lambda header: header.pop("geometry"), "has a header that cannot be used"),
    ],
)
def test_a_classifier_that_misfits_its_header_is_refused(
    classifier_file: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    rewrite(classifier_file, change)
    with pytest.raises(InputError, match=f"{classifier_file} .*{said}") as raised:
        load_classifier(classifier_file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("length", [0, 1000, -1000])
def test_a_damaged_classifier_is_refused_by_name(classifier_file: Path, length: int) -> None:
    classifier_file.write_bytes(classifier_file.read_bytes()[:length])
    with pytest.raises(InputError, match=f"{classifier_file} is not a safetensors file"):
        load_classifier(classifier_file)
