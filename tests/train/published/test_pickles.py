"""A pickle is read as data: whatever it asks for, nothing is imported, called or given a state."""

from __future__ import annotations

import argparse
import builtins
import collections
import copyreg
import datetime
import io
import os
import pathlib
import pickle
import subprocess
import sys
import time
import types
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit_train.published.pickles import Global, Harmful, Inert, NotReadable, unpickle
from tests.train.published.harmful import Runs

RECONSTRUCT = copyreg.__dict__["_reconstructor"]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(data: bytes) -> Any:
    return unpickle(io.BytesIO(data))


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(trees, st.sampled_from(PROTOCOLS[3:]))
def test_plain_data_is_what_pickle_makes_of_it(tree: Any, protocol: int) -> None:
    data = pickle.dumps(tree, protocol)
    assert read(data) == pickle.loads(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mappings_keep_their_items_and_what_is_shared_is_shared(protocol: int) -> None:
    shared = ["a"]
    tree = {
        "ordered": collections.OrderedDict(a=shared, b=2),
        "default": collections.defaultdict(list, c=shared),
        "counter": collections.Counter("aab"),
    }
    found = read(pickle.dumps(tree, protocol))
    assert found == {
        "ordered": {"a": ["a"], "b": 2},
        "default": {"c": ["a"]},
        "counter": {"a": 2, "b": 1},
    }
    assert found["ordered"]["a"] is found["default"]["c"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        Fraction(1, 2),
        argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=1)),
        pathlib.PurePosixPath("/a/b"),
        np.float64(2.5),
        np.ones(3),
        datetime.timedelta(seconds=3),
        {1, 2},
        frozenset("ab"),
        slice(1, 2),
        types.SimpleNamespace(a=1),
        Runs(getattr, "a", "upper"),
        Runs(pathlib.Path.touch, pathlib.PurePosixPath("/nowhere")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_classes_are_inert_and_their_neighbors_are_read(value: object, protocol: int) -> None:
    assert read(pickle.dumps({"weights": [1, 2], "other": value, "last": 3}, protocol))[
        "weights"
    ] == [1, 2]


def test_an_inert_object_keeps_its_class_arguments_and_state() -> None:
    found = read(pickle.dumps(argparse.Namespace(lr=0.1), 2))
    assert isinstance(found, Inert)
    assert found.made_by == Global("argparse", "Namespace")
    assert found.attribute("lr") == 0.1
    assert found.attribute("rate") is None


def test_unknown_modules_are_not_imported() -> None:
    data = b"cno_such_module_at_all\nThing\n(S'a'\ntR}(S'b'\nI1\nub."
    assert read(data).made_by == Global("no_such_module_at_all", "Thing")
    assert "no_such_module_at_all" not in sys.modules


@pytest.mark.parametrize(
    "harmful",
    [
        Runs(os.system, "true"),
        Runs(os.popen, "true"),
        Runs(subprocess.Popen, ["true"]),
        Runs(subprocess.check_output, ["true"]),
        Runs(eval, "1"),
        Runs(exec, "pass"),
        Runs(compile, "1", "a", "eval"),
        Runs(open, "/tmp/none", "w"),
        Runs(__import__, "os"),
    ],
    ids=lambda harmful: harmful.call[0].__name__,
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_function_that_runs_commands_is_named_and_not_run(
    harmful: Runs, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps({"weights": 1, "other": harmful}, protocol)
    for module, name in (
        (os, "system"),
        (subprocess, "Popen"),
        (builtins, "eval"),
        (builtins, "exec"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(Harmful) as caught:
        read(data)
    monkeypatch.undo()
    assert caught.value.name.split(".")[-1] == harmful.call[0].__name__


def test_nothing_is_called_whatever_a_pickle_asks_for() -> None:
    """A hook of the interpreter's own would see an import, a call of open, exec or compile, and a
    new process."""
    seen = []
    watched = (
        "import",
        "open",
        "exec",
        "compile",
        "os.",
        "subprocess.",
        "socket.",
        "object.__setattr__",
    )
    active = True

    def hook(event: str, _arguments: object) -> None:
        if active and event.startswith(watched):
            seen.append(event)

    data = [
        pickle.dumps(Runs(function, "x"))
        for function in (RECONSTRUCT, np.load, pathlib.Path, getattr, print)
    ]
    read(data[0])
    sys.addaudithook(hook)
    for each in data:
        read(each)
    active = False
    assert seen == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"garbage",
        b"\x80\x04",
        b"\x80\x04N",
        b"0.",
        b"\x80\x02}q\x00(X\x01\x00\x00\x00au.",
        b"(.",
        b"h\x05.",
        b"R.",
        b"u.",
    ],
)
def test_what_is_no_pickle_is_said(data: bytes) -> None:
    with pytest.raises(NotReadable):
        read(data)


def test_no_pickle_takes_long_or_fills_the_memory() -> None:
    """Tuples in tuples as keys, whose hash takes for ever, a memo of four billion places, a string
    of a petabyte."""
    started = time.process_time()
    doubled = b"(I1\nt" + b"2\x86" * 80  # DUP and TUPLE2: each holds the one before twice
    assert len(read(b"}" + doubled + b"I1\ns.")) == 1
    assert read(b"Nr\xff\xff\xff\xff.") is None
    with pytest.raises(NotReadable):
        read(b"\x8d" + (2**50).to_bytes(8, "little") + b"a.")
    with pytest.raises(NotReadable):
        read(b"\x96" + (2**50).to_bytes(8, "little") + b"a.")
    assert time.process_time() - started < 1
