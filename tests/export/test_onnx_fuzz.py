"""Any bytes are an ONNX file that can be adopted or are refused in one sentence: reading, what it
takes and gives, surgery."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from featkit_export.adopted_graph import adopt
from featkit_export.original import load_onnx, read_interface
from featkit_export.recipe import FEATURES
from tests.export.published import GEOMETRY, build
from tests.fuzzing import CASES, fuzz


def small(**options: str) -> bytes:
    """Build a file with few weights, so that mutations hit the parts that are read."""
    model = build(**options)  # type: ignore[arg-type]
    for weight in model.graph.initializer:
        weight.raw_data = weight.raw_data[:16]
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_adopted_or_refused(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        model = load_onnx(path)
        read_interface(model, name=str(path))
        for feature in FEATURES[:2]:
            adopted = adopt(
                model,
                geometry=GEOMETRY,
                feature=feature,
                outputs=("embedding", "patches"),
                name=str(path),
            )
            assert isinstance(adopted, onnx.ModelProto)

    fuzz(parse, [small(), small(extra="branch"), build(opset=11).SerializeToString()], cases=cases)
