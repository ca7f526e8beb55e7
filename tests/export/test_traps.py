"""Four traps of the exporter that raise nothing by themselves: a tiny network with each is refused,
and ours have none.

They are sizes that Python turns into numbers (1), tables stretched by a factor (2), shortcuts for
one size (3), and an output that is called as a weight (4). What is wrong shows at another size
alone, so that is where graphs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit.modelfile import INPUT, OUTPUTS
from featkit_export.export import export_backbone
from featkit_export.graph import EmbeddingGraph, TraceError, check_graph, quiet_exporter, trace
from featkit_export.recipe import Recipe
from featkit_export.traced import Traced
from featkit_export.verify import (
    Parity,
    ParityError,
    cases_for,
    compare,
    open_session,
    require_parity,
)
from featkit_train.networks.base import Activations, Backbone, Features
from tests.export.backbones import (
    CONFIGS,
    draw_weights,
    drawn_backbone,
    file_of,
    geometry_for,
    info_for,
)
from tests.sentences import refused

PATCH, WIDTH, GRID = 8, 12, 4


class Sound(Backbone):
    """Patch filters and a position table, without any of the traps."""

    def __init__(self) -> None:
        super().__init__(patch=PATCH, width=WIDTH, depth=1)
        self.filters = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.table = nn.Parameter(torch.zeros(1, WIDTH, GRID, GRID))
        draw_weights(self)

    def positions(self, height: int, width: int) -> Tensor:
        """(1, WIDTH, h, w), right at every size."""
        return F.interpolate(self.table, size=(height, width), mode="bicubic")

    def activations(
        self,
        images: Tensor,
        *,
        layers: Sequence[int],  # noqa: ARG002
        attention: bool = False,  # noqa: ARG002
    ) -> Activations:
        """Features of the one layer."""
        places = self.filters(images)
        places = places + self.positions(*places.shape[2:])
        return Activations((Features(places.amax(dim=(2, 3)), places.permute(0, 2, 3, 1)),), None)


class NumberOfASize(Sound):
    """Trap 1: float(h) is the example's h for ever."""

    def positions(self, height: int, width: int) -> Tensor:
        """Waves along the rows."""
        rows = (torch.arange(height) + 0.5) / float(height)
        return (3 * rows).sin()[:, None].expand(height, width) * self.table[:, :, :1, :1]


class StretchedByAFactor(Sound):
    """Trap 2: the table of the example's size for ever."""

    def positions(self, height: int, width: int) -> Tensor:
        """Interpolate like DINO's released code."""
        factor = ((height + 0.1) / GRID, (width + 0.1) / GRID)
        return F.interpolate(self.table, scale_factor=factor, mode="bicubic")


class ShortcutForOneSize(Sound):
    """Trap 3: whether the example had the table's size, for ever. Its table is not taken through
    the rule at its own size."""

    def positions(self, height: int, width: int) -> Tensor:
        """Interpolate like DINO's released code, which would blur the table at its own size."""
        if height == GRID and width == GRID:
            return self.table
        return 0.5 * super().positions(height, width)


class ShortcutForTheExample(Sound):
    """Trap 3 the other way round: the shortcut is baked in, since the example has its size."""

    def positions(self, height: int, width: int) -> Tensor:
        """A table for 3 × 5 patches."""
        if height == 3 and width == 5:
            return self.table[:, :, :1, :1].expand(1, WIDTH, 3, 5)
        return super().positions(height, width)


def graph_of(backbone: Backbone) -> EmbeddingGraph:
    return EmbeddingGraph(
        backbone, geometry_for(CONFIGS["dino"], patches=GRID), Recipe(feature="cls+mean")
    ).eval()


def comparisons(backbone: Backbone, folder: Path) -> list[Parity]:
    module = graph_of(backbone)
    session = open_session(trace(module, folder).session_input)
    return compare(
        module.run, session, cases_for(height=GRID * PATCH, width=GRID * PATCH, patch=PATCH)
    )


def test_without_a_trap_the_small_network_is_equal_at_every_size(tmp_path: Path) -> None:
    assert all(case.holds for case in comparisons(Sound(), tmp_path))


def test_size_fixed_in_silence_is_found_by_comparing(
    tmp_path: Path,
) -> None:
    found = comparisons(NumberOfASize(), tmp_path)
    assert all(
        case.max_abs > 1e-3 for case in found
    )  # the example's 3 × 5 patches are not among them
    with refused("differs from its model in embedding, batch 1, 32×32", error=ParityError):
        require_parity(found)


@pytest.mark.parametrize("trap", [StretchedByAFactor, ShortcutForTheExample])
def test_table_of_the_example_is_found_by_comparing(
    tmp_path: Path, trap: type[Sound], capfd: pytest.CaptureFixture[str]
) -> None:
    module = graph_of(trap())
    session = open_session(trace(module, tmp_path).session_input)
    # at the example's size it seems right
    assert compare(module.run, session, [(2, 3 * PATCH, 5 * PATCH)])[0].holds
    with refused("fails on batch 1, 32×32, which its model takes", error=ParityError):
        compare(module.run, session, [(1, 32, 32)])
    assert capfd.readouterr().err == ""


def test_shortcut_at_the_table_size_is_found_by_comparing(tmp_path: Path) -> None:
    found = comparisons(ShortcutForOneSize(), tmp_path)
    assert [case.holds for case in found] == [
        (case.height, case.width) != (32, 32) for case in found
    ]
    with refused("batch 1, 32×32", error=ParityError):
        require_parity(found)


def test_a_choice_by_what_a_image_shows_is_refused_while_tracing(tmp_path: Path) -> None:
    class ByContent(Sound):
        def positions(self, height: int, width: int) -> Tensor:
            found = super().positions(height, width)
            return found if found.sum() > 0 else -found

    with refused("cannot be written as one graph", error=TraceError):
        trace(graph_of(ByContent()), tmp_path)


def named_as_a_weight() -> onnx.ModelProto:
    """A model file's graph whose output has a weight's name, as the exporter writes it for a
    parameter of that name."""
    model = onnx.load(file_of("dinov3")[0])
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    for node in model.graph.node:
        node.output[:] = [weight.name if name == "embedding" else name for name in node.output]
    model.graph.output[0].name = weight.name
    return model


def test_output_named_like_a_weight_is_refused() -> None:
    class WithAParameter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls = nn.Parameter(torch.ones(4))

        def forward(self, values: Tensor) -> tuple[Tensor]:
            return (values + self.cls,)

    with quiet_exporter():
        program = torch.onnx.export(
            WithAParameter().eval(),
            (torch.zeros(2, 4),),
            dynamo=True,
            output_names=["cls"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    assert [value.name for value in program.model_proto.graph.output] == ["cls"]
    for wrong in (program.model_proto, named_as_a_weight()):
        with pytest.raises(Exception, match="Duplicate definition"):
            open_session(wrong.SerializeToString())
        with refused("is not valid ONNX", error=TraceError):
            check_graph(Traced(model=wrong))


# featkit's own.


@pytest.mark.parametrize("name", CONFIGS)
def test_our_graphs_are_equal_at_every_special_size(
    name: str,
) -> None:
    config = CONFIGS[name]
    module = EmbeddingGraph(drawn_backbone(config), geometry_for(config), file_recipe(name)).eval()
    session = open_session(str(file_of(name)[0]))
    grid, patch = config.position_grid, config.patch
    sizes = [(3, 5), (grid, grid), (grid, grid + 1), (1, 1), (1, 9), (13, 2)]
    found = compare(
        module.run, session, [(2, rows * patch, columns * patch) for rows, columns in sizes]
    )
    assert len(found) == len(sizes) * len(OUTPUTS)
    require_parity(found)


def file_recipe(name: str) -> Recipe:
    """Return the recipe of file_of(name)."""
    manifest = file_of(name)[1].manifest
    return Recipe(feature="cls+gem", layers=manifest.layers, outputs=manifest.outputs)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_outputs_have_names_that_no_weight_has(name: str) -> None:
    graph = onnx.load(file_of(name)[0]).graph
    assert [output.name for output in graph.output] == list(OUTPUTS)
    assert not {tensor.name for tensor in graph.initializer} & {INPUT, *OUTPUTS}


def test_other_architecture_falls_back_to_its_native_size(
    tmp_path: Path,
) -> None:
    out = tmp_path / "m.onnx"
    for number, trap in enumerate((NumberOfASize, StretchedByAFactor)):
        info = info_for(CONFIGS["dino"], name="trap")
        report = export_backbone(trap().eval(), info, out, recipe=Recipe(feature="cls+mean"))
        assert report.manifest.fixed_size == (32, 32)
        assert all(
            case.holds and (case.height, case.width) == (32, 32) for case in report.comparisons
        )
        (remark,) = report.remarks
        assert "so the file accepts only 32×32" in remark
        assert "nothing was written" not in remark
        assert ("differs from its model", "fails on batch 1, 32×32")[number] in remark
    assert list(tmp_path.iterdir()) == [out]
