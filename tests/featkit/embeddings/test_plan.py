"""plan.json: what is written is read back, and what is not a plan is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from featkit.embeddings import Embeddings
from featkit.errors import InputError
from tests.featkit.embeddings.plans import PLAN


def test_plan_is_read_back_as_written(tmp_path: Path) -> None:
    Embeddings.create(tmp_path, PLAN)
    assert Embeddings.open(tmp_path).plan == PLAN
    assert (
        json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["source"] == "photos – été"
    )


def test_plan_of_format_1_ran_onnxruntime_in_fp32(tmp_path: Path) -> None:
    values = json.loads(PLAN.to_json())
    del values["run"]
    (tmp_path / "plan.json").write_text(json.dumps({**values, "format": 1}))
    plan = Embeddings.open(tmp_path).plan
    assert (plan.run, plan.format) == ("onnxruntime fp32", 1)


def test_plan_keeps_the_runtime(tmp_path: Path) -> None:
    Embeddings.create(tmp_path, dataclasses.replace(PLAN, run="openvino bf16"))
    assert Embeddings.open(tmp_path).plan.run == "openvino bf16"
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace("openvino bf16", "abacus"))
    with pytest.raises(InputError, match="'abacus' is not an engine and a precision"):
        Embeddings.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is damaged or not featkit's"),
        ("[]", "it is damaged or not featkit's"),
        ('{"format": 1}', "it is damaged or not featkit's"),
        (PLAN.to_json()[:-20], "it is damaged or not featkit's"),
        (PLAN.to_json().replace('"source"', '"sauce"'), "it is damaged or not featkit's"),
        (
            json.dumps({"format": 4, "anything": "else"}),
            "it has format 4, newer than the 3 read here; update featkit",
        ),
    ],
)
def test_unusable_plan_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError) as caught:
        Embeddings.open(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/plan.json cannot be used: ")
    assert words in str(caught.value)
