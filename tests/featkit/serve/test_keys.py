"""Keys: how they are made and recognized."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.index import Index
from featkit.serve.keys import ApiKey, create_key, find, read_keys, revoke_key
from featkit.serve.rates import Rate

LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "featkit-keys.json"


def by_id(path: Path) -> dict[str, ApiKey]:
    return {key.id: key for key in read_keys(path)}


def test_a_created_key_is_found_with_all_it_may_do(file: Path) -> None:
    rate = Rate(per_second=2, burst=9)
    token = create_key(
        file, "web", scopes=("write", "read"), expires=LATER, image_rate=rate, byte_rate=rate
    )
    other = create_key(file, "other")
    key = find(by_id(file), token.encode())
    assert key is not None
    assert (key.name, key.scopes, key.expires) == ("web", ("read", "write"), LATER)
    assert (key.image_rate, key.byte_rate) == (rate, rate)
    assert abs(key.created - datetime.now(UTC)) < timedelta(minutes=5)
    found = find(by_id(file), other.encode())
    assert found is not None
    assert (found.name, found.scopes, found.expires) == ("other", ("read",), None)


def test_the_file_has_the_salted_hash_and_not_the_key(file: Path) -> None:
    token = create_key(file, "web")
    (key,) = read_keys(file)
    assert token.rsplit("_", 1)[1] not in file.read_text("utf-8")
    again = hashlib.blake2b(
        token.encode(), digest_size=32, salt=bytes.fromhex(key.salt), person=b"featkit-api-key"
    )
    assert key.hash == again.hexdigest()


def test_a_key_has_256_random_bits(file: Path) -> None:
    tokens = [create_key(file, f"key{number}") for number in range(20)]
    secrets = {re.fullmatch(r"featkit_[0-9a-f]{8}_([0-9a-f]{64})", token)[1] for token in tokens}  # type: ignore[index]
    assert len(secrets) == len({key.salt for key in read_keys(file)}) == 20
    ones = sum(int(secret, 16).bit_count() for secret in secrets)
    assert abs(ones - 20 * 128) < 5 * 36  # five standard deviations of 5120 fair coins


def test_a_revoked_key_is_gone(file: Path) -> None:
    tokens = {name: create_key(file, name) for name in ("a", "b", "c")}
    assert revoke_key(file, "b").name == "b"
    assert revoke_key(file, read_keys(file)[1].id).name == "c"
    found = {name: find(by_id(file), token.encode()) for name, token in tokens.items()}
    assert [name for name, key in found.items() if key is not None] == ["a"]
    with pytest.raises(InputError, match=r"has no key b; it has a\.$"):
        revoke_key(file, "b")


def test_a_key_expires_at_its_time(file: Path) -> None:
    create_key(file, "web", expires=LATER)
    (key,) = read_keys(file)
    assert [key.has_expired(LATER + timedelta(seconds=s)) for s in (-1, 0, 1)] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("name", ["", " ", "a b", "-x", "é", "a\n", "x" * 65, "../keys", "\x1b[2J"])
def test_a_name_can_be_printed_anywhere(file: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a key's name"):
        create_key(file, name)
    assert not file.exists()


def test_keys_that_mean_nothing_are_refused(file: Path, index: Index) -> None:
    create_key(file, "web")
    with pytest.raises(InputError, match="has a key web already"):
        create_key(file, "web")
    with pytest.raises(InputError, match="is not in the future"):
        create_key(file, "old", expires=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(InputError, match="at least one scope of read, write, admin"):
        create_key(file, "none", scopes=())
    with pytest.raises(InputError, match="inside an index"):
        create_key(index.path / "keys.json", "web")
    assert [key.name for key in read_keys(file)] == ["web"]


TOKEN = "featkit_01234567_" + "ab" * 32


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
@example(TOKEN.encode())
@example(TOKEN.upper().encode())
@example(TOKEN.encode() + b"\n")
@example(b"featkit_01234567_" + b"a" * 100_000)
@example("featkit_０１２３４５６７_".encode() + b"ab" * 32)
def test_no_other_text_is_a_key(token: bytes) -> None:
    key = ApiKey(
        id="01234567",
        name="web",
        scopes=("read",),
        created=LATER,
        salt="00" * 16,
        hash=hashlib.blake2b(
            b"another", digest_size=32, salt=bytes(16), person=b"featkit-api-key"
        ).hexdigest(),
    )
    assert find({key.id: key}, token) is None


@pytest.mark.parametrize("position", [20, 50, len(TOKEN) - 1])
def test_a_key_with_one_wrong_digit_is_refused(file: Path, position: int) -> None:
    token = bytearray(create_key(file, "web").encode())
    token[position] = ord("0") if token[position] != ord("0") else ord("1")
    assert find(by_id(file), bytes(token)) is None


def test_known_and_unknown_ids_are_compared_alike(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = create_key(file, "web")
    keys = by_id(file)
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def note(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr("featkit.serve.keys.hmac.compare_digest", note)
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    unknown = "featkit_00000000" + token[16:]
    found = [find(keys, text.encode()) is not None for text in (token, wrong, unknown)]
    assert (found, compared) == ([True, False, False], [(32, 32)] * 3)


def test_the_dummy_hash_of_unknown_ids_fits_no_key(file: Path) -> None:
    create_key(file, "web")
    assert find(by_id(file), TOKEN.encode()) is None
    assert find({}, TOKEN.encode()) is None
