"""The command `featkit keys`."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from featkit.serve.keys import find, read_keys
from featkit.serve.rates import Rate
from tests.commands import is_one_sentence, run_featkit


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_create_prints_the_key_alone_and_once() -> None:
    code, out, error = run_featkit("keys", "create", "web")
    assert (code, re.fullmatch(r"featkit_[0-9a-f]{8}_[0-9a-f]{64}\n", out) is None) == (0, False)
    assert "Keep this key; featkit-keys.json has only its hash." in error
    (key,) = read_keys(Path("featkit-keys.json"))
    assert find({key.id: key}, out.strip().encode()) == key
    assert (key.name, key.scopes, key.expires, key.image_rate) == ("web", ("read",), None, None)
    listed = run_featkit("keys", "list")
    secret = out.strip().rsplit("_", 1)[1]
    assert secret not in listed.out + run_featkit("keys", "list", "--json").out


def test_options_reach_the_file() -> None:
    code, out, error = run_featkit(
        *("keys", "create", "web", "--keys", "sub/k.json", "--json"),
        *("--scope", "read", "--scope", "admin", "--expires", "2100-01-31"),
        *("--images-per-second", 20, "--bytes-per-second", 0.05, "--byte-burst", 70),
    )
    assert (code, error) == (0, "")
    (key,) = read_keys(Path("sub/k.json"))
    assert json.loads(out)["key"].startswith(f"featkit_{key.id}_")
    assert (key.scopes, key.expires) == (("read", "admin"), datetime(2100, 1, 31, tzinfo=UTC))
    assert key.image_rate == Rate(per_second=20, burst=200)
    assert key.byte_rate == Rate(per_second=0.05, burst=70)


def test_list_shows_each_key_and_what_it_may_do() -> None:
    run_featkit("keys", "create", "web", "--images-per-second", 20, "--scope", "write")
    run_featkit("keys", "create", "job", "--expires", "2100-01-31T18:30:00+02:00")
    out = " ".join(run_featkit("keys", "list").out.split())
    assert re.search(r"web [0-9a-f]{8} write \S+ never 20 \(at once 200\) –", out)
    assert re.search(r"job [0-9a-f]{8} read \S+ 2100-01-31 16:30 – –", out)
    keys = json.loads(run_featkit("keys", "list", "--json").out)["keys"]
    assert [(key["name"], key["expired"], key["image_rate"]) for key in keys] == [
        ("web", False, {"per_second": 20.0, "burst": 200.0}),
        ("job", False, None),
    ]
    assert all({"salt", "hash"}.isdisjoint(key) for key in keys)


def test_an_expired_key_is_marked() -> None:
    run_featkit("keys", "create", "web")
    path = Path("featkit-keys.json")
    path.write_text(
        path.read_text("utf-8").replace('"expires": null', '"expires": "2020-01-01T00:00:00Z"'),
        "utf-8",
    )
    assert "2020-01-01 (expired)" in " ".join(run_featkit("keys", "list").out.split())


def test_revoke_removes_a_key() -> None:
    run_featkit("keys", "create", "web")
    (key,) = read_keys(Path("featkit-keys.json"))
    assert run_featkit("keys", "revoke", "web") == (0, f"Revoked web ({key.id}).\n", "")
    assert run_featkit("keys", "list").out.startswith("featkit-keys.json has no keys")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list",), "does not exist; create a key"),
        (("revoke", "web"), "does not exist; create a key"),
        (("create", "a b"), "cannot be a key's name"),
        (("create", "web", "--expires", "2020-01-01"), "is not in the future"),
        (("create", "web", "--images-per-second", "0"), "--images-per-second is 0.0"),
        (("create", "web", "--images-per-second", "nan"), "--images-per-second is nan"),
        (("create", "web", "--byte-burst", "5"), "--byte-burst needs --bytes-per-second"),
        (
            ("create", "web", "--bytes-per-second", "5", "--byte-burst", "0.5"),
            "--byte-burst is 0.5; it must be a number from 1 on",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    said = run_featkit("keys", *arguments)
    assert (said.code, is_one_sentence(said), words in said.error) == (2, True, True), said
