"""Read a pickle as data: nothing is imported and no function is called, whatever the file asks.

`pickletools` splits the file into instructions, and a small stack machine follows them. A class or
function becomes a Global, which is only its name. A call becomes an Inert object that keeps the
arguments, unless the caller's `make` returns something else. So options, callbacks and whole
modules next to the weights do not need their libraries.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

MAPPINGS = ("dict", "OrderedDict", "defaultdict", "Counter")
# A file of weights never needs these. They would not run here, but the file is not what it claims.
HARMFUL_MODULES = frozenset(
    (
        "os posix nt subprocess commands pty runpy socket webbrowser shutil ctypes importlib code"
        " sys"
    ).split()
)
HARMFUL_BUILTINS = frozenset("eval exec compile open input __import__ breakpoint".split())


class NotReadable(Exception):
    """The file is damaged or not a pickle; the message is a clause with the reason."""


class Harmful(Exception):
    """The pickle asks for a function that could run a command; `name` is that function."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return (
            self.name
            if self.module in ("builtins", "__builtin__")
            else f"{self.module}.{self.name}"
        )


@dataclass(eq=False, slots=True)
class Inert:
    """An object that was not constructed: its class or function, arguments, state and items."""

    made_by: object
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)

    def attribute(self, name: str) -> Any:
        """Return an attribute that the state would have set, or None."""
        state = (
            self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        )
        return state.get(name) if isinstance(state, dict) else None


Make = Callable[[Global, tuple[Any, ...]], Any]


def unpickle(
    file: IO[bytes],
    *,
    make: Make = lambda made_by, args: Inert(made_by, args),
    stored: Callable[[Any], Any] = lambda identity: identity,
) -> Any:
    """Return the content of one pickle, and leave the file at its end.

    make: gets each call in the pickle and returns what stands for its result. stored: gets the
    identity of each object that is kept elsewhere, such as a tensor's data.
    NotReadable if it is not a pickle; Harmful if it names a function that could run a command.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of invalid escapes in text
            return _Machine(make, stored).run(file)
    except (NotReadable, Harmful):
        raise
    # pickletools raises different errors for different instructions, and the machine for whatever
    # is missing on its stack.
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise NotReadable(str(error) or type(error).__name__) from error


class _Machine:
    def __init__(self, make: Make, stored: Callable[[Any], Any]) -> None:
        self.make, self.stored = make, stored
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "STOP":
                return self.stack.pop()
            handler = _HANDLERS.get(instruction.name)
            if handler is None:
                raise NotReadable(f"it uses the instruction {instruction.name}")
            handler(self, argument)
        raise NotReadable("it ends early")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def from_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, count: int) -> tuple[Any, ...]:
        """Take `count` values off the stack."""
        if len(self.stack) < count:
            raise NotReadable("its stack is empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.from_mark()

    def pop_mark(self, _: object) -> None:
        self.from_mark()

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else int(index)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[int(index)])

    def name(self, words: str | None) -> None:
        if words is None:
            module, name = self.top(2)
        else:
            module, _, name = words.partition(" ")
        if not isinstance(module, str) or not isinstance(name, str):
            raise NotReadable("it names something by what is not text")
        if module.split(".")[0] in HARMFUL_MODULES or (
            module in ("builtins", "__builtin__", "io", "_io")
            and name.split(".")[0] in HARMFUL_BUILTINS
        ):
            raise Harmful(str(Global(module, name)))
        self.push(Global(module, name))

    def reduce(self, _: object) -> None:
        function, args = self.top(2)
        self.push(self.called(function, args))

    def new_with_keywords(self, _: object) -> None:
        function, args, _keywords = self.top(3)
        self.push(self.called(function, args))

    def instance(self, words: str) -> None:
        args = self.from_mark()
        self.name(words)
        self.push(self.called(self.stack.pop(), tuple(args)))

    def called_from_mark(self, _: object) -> None:
        function, *args = self.from_mark()
        self.push(self.called(function, tuple(args)))

    def called(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise NotReadable("it calls something without arguments")
        if not isinstance(function, Global):
            return Inert(function, args)
        if (
            function.module == "copyreg"
            and function.name in ("__newobj__", "_reconstructor")
            and args
        ):
            return self.called(args[0], args[1:2] if function.name == "__newobj__" else ())
        if function.name in MAPPINGS and function.module in (
            "collections",
            "builtins",
            "__builtin__",
        ):
            return mapping_of(args)
        return self.make(function, args)

    def build(self, _: object) -> None:
        (state,) = self.top(1)
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def append(self, _: object) -> None:
        (item,) = self.top(1)
        self.extend([item])

    def appends(self, _: object) -> None:
        self.extend(self.from_mark())

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):  # a subclass of list needs no items
            self.stack[-1].extend(items)

    def set_item(self, _: object) -> None:
        self.set_pairs(list(self.top(2)))

    def set_items(self, _: object) -> None:
        self.set_pairs(self.from_mark())

    def set_pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise NotReadable("a key has no value")
        mapping = target.items if isinstance(target, Inert) else target
        if isinstance(mapping, dict):
            mapping.update(_paired(items))


def mapping_of(args: tuple[Any, ...]) -> dict[Any, Any]:
    """Return what dict(...), or a similar class, makes of its arguments."""
    mapping: dict[Any, Any] = {}
    for content in args:
        if isinstance(content, dict):
            mapping.update(content)
        elif isinstance(content, list | tuple) and all(
            isinstance(pair, list | tuple) and len(pair) == 2 for pair in content
        ):
            mapping.update(_paired([value for pair in content for value in pair]))
    return mapping


def _paired(items: list[Any]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _hashable(key: Any) -> Any:
    """Return a key that is cheap to hash; nested tuples can take arbitrarily long."""
    if isinstance(key, Inert | Global | str | int | float | bytes | None):
        return key
    if isinstance(key, tuple) and all(
        isinstance(part, str | int | float | bytes | None) for part in key
    ):
        return key
    return Inert(None, (key,))


def _pushing(make: Callable[[_Machine, Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(make(machine, argument))


_PUSHED_AS_IT_IS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES"
    " SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT"
    " BINFLOAT NONE"
)
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED_AS_IT_IS.split(), _Machine.push),
    "NEWTRUE": _pushing(lambda _machine, _argument: True),
    "NEWFALSE": _pushing(lambda _machine, _argument: False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), _pushing(lambda _machine, _argument: [])),
    "EMPTY_TUPLE": _pushing(lambda _machine, _argument: ()),
    "EMPTY_DICT": _pushing(lambda _machine, _argument: {}),
    **dict.fromkeys(("LIST", "FROZENSET"), _pushing(lambda machine, _: machine.from_mark())),
    "TUPLE": _pushing(lambda machine, _: tuple(machine.from_mark())),
    "TUPLE1": _pushing(lambda machine, _: machine.top(1)),
    "TUPLE2": _pushing(lambda machine, _: machine.top(2)),
    "TUPLE3": _pushing(lambda machine, _: machine.top(3)),
    "DICT": _pushing(lambda machine, _: _paired(machine.from_mark())),
    "PERSID": _pushing(lambda machine, argument: machine.stored(argument)),
    "BINPERSID": _pushing(lambda machine, _: machine.stored(machine.top(1)[0])),
    **dict.fromkeys(
        ("EXT1", "EXT2", "EXT4"),
        _pushing(lambda _machine, argument: Global("copyreg", f"extension {argument}")),
    ),
    "DUP": _pushing(lambda machine, _: machine.stack[-1]),
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "MARK": _Machine.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.called_from_mark,
    "BUILD": _Machine.build,
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.appends),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("PROTO", "FRAME"), lambda _machine, _argument: None),
}
