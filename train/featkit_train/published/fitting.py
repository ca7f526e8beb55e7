"""Find the backbone among the tensors of a file: the one prefix under which its names and shapes
fit, and whose weights it is.

A training saves more than a backbone: teacher and student, an average of the weights, heads,
losses, the optimizer. Each mapping of the file and each beginning of names in it is tried, and a
candidate is right if every weight of the backbone is there in its shape. Of several the teacher's
comes first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from featkit.errors import InputError
from featkit.wording import counted
from featkit_train.published.key_maps import POSITIONS, KeyMap, listed, rename
from featkit_train.published.weight_files import Group, Weights

TEACHER, EMA, PLAIN, STUDENT = "teacher", "ema", "plain", "student"
PREFERRED = (TEACHER, EMA, PLAIN, STUDENT)
WORDS = {
    TEACHER: frozenset(("teacher", "momentum", "target", "key")),
    EMA: frozenset(("ema", "averaged", "avg", "swa")),
    STUDENT: frozenset(("student", "online", "query")),
}
# What trainings put onto a backbone, by the first word of its names.
HEAD = re.compile(
    r"(?:\w+_)?(?:heads?|classifier|projector|projection|predictor|prediction|queue|prototypes?|pooler|decoder|aux)(?:_\w+)?\d*"
    r"|fc|last_linear|last_layer|linear|mlp|center|criterion|loss|n_averaged|num_updates|initted|step|logit_scale|logit_bias"
)
MIN_SHARE = 0.2  # of the names that the best prefix fits: fewer are chance
SHOWN_PREFIXES, SHOWN_SHAPES = 4, 2

Wanted = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A candidate: the tensors under `prefix` in the mapping `group`, read by `keys`, and what
    keeps them from fitting.

    outlines: tensors by our names, without their numbers. sources: the file's names behind each of
    ours. left_out: names of heads. missing: our names; unknown: the file's; misshapen: our names
    with both shapes.
    """

    group: str
    prefix: str
    keys: KeyMap
    tensors: Group
    outlines: Mapping[str, Tensor] = field(default_factory=dict)
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    missing: Sequence[str] = ()
    unknown: Sequence[str] = ()
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    num_wanted: int = 0
    problem: str = ""

    @property
    def whole(self) -> bool:
        """Whether every weight is there, and none beside."""
        return not (self.missing or self.unknown or self.misshapen or self.problem)

    @property
    def place(self) -> str:
        """Where the weights are, such as `teacher.backbone.`; "" for a file of nothing else."""
        return (f"{self.group}." if self.group else "") + self.prefix

    @property
    def branch(self) -> str:
        """Whose weights they are, by the words before their names."""
        words = {word for part in self.place.lower().split(".") for word in part.split("_")}
        return next((branch for branch in (TEACHER, EMA, STUDENT) if words & WORDS[branch]), PLAIN)

    @property
    def num_matching(self) -> int:
        """How many of the weights are there in their shapes."""
        return self.num_wanted - len(self.missing) - len(self.misshapen)

    def source(self, name: str) -> str:
        """The file's name of one of ours."""
        name = "patch_positions" if name == "class_position" else name  # two parts of one table
        return self.place + self.sources[name][0] if name in self.sources else name

    def read(self, what: str) -> dict[str, Tensor]:
        """The tensors by our names."""
        wanted = [name for names in self.sources.values() for name in names]
        return rename({name: self.tensors[name].read() for name in wanted}, self.keys, what=what)

    def mismatches(self) -> str:
        """What keeps it from fitting, for people, with the file's names and both shapes."""
        said = [self.problem] if self.problem else []
        if self.missing:
            said.append(
                f"it lacks {listed(list(self.missing))} ({len(self.missing)} of"
                f" {counted(self.num_wanted, 'weight')})"
            )
        if self.unknown:
            said.append(
                f"it has {listed([self.place + name for name in self.unknown])}, which the model"
                " has no place for"
            )
        shapes = [
            self._shapes(name)
            for name in self.misshapen
            if name != "class_position" or len(self.misshapen) == 1
        ]
        return "; ".join([*said, *shapes[:SHOWN_SHAPES]])

    def _shapes(self, name: str) -> str:
        """Both shapes of one of ours, as the file has it."""
        theirs, ours = self.misshapen[name]
        if name == "patch_positions":
            theirs, ours = (
                self.tensors[self.sources[name][0]].shape,
                (
                    1,
                    1 + ours[0] * ours[1],
                    ours[2],
                ),
            )
        return f"{self.source(name)} is {theirs}, not {ours}"


def fits(
    found: Weights, maps: Sequence[KeyMap], wanted: Wanted, *, names: Container[str]
) -> list[Fit]:
    """Every candidate, the whole ones first, then those that lack least. Empty if no name of the
    file is known.

    wanted: from the outlines of a candidate to the backbone's tensors, since sizes such as that of
    the position table follow from the file. names: all the backbone's names.
    """
    candidates = [
        (count, group, prefix, keys)
        for keys in maps
        for group, tensors in found.groups.items()
        for prefix, count in prefixes(tensors, keys, names).items()
    ]
    most = max((count for count, *_ in candidates), default=0)
    likely = [candidate for candidate in candidates if candidate[0] >= MIN_SHARE * most]
    tried = []
    for _, group, prefix, keys in likely:
        inside = [
            other
            for _, its, other, _ in likely
            if its == group and other != prefix and other.startswith(prefix)
        ]
        tried.append(_fit(group, prefix, keys, found, wanted, others=tuple(inside)))
    return sorted(
        tried,
        key=lambda fit: (not fit.whole, bool(fit.problem), len(fit.missing) + len(fit.unknown)),
    )


def prefixes(tensors: Group, keys: KeyMap, names: Container[str]) -> Counter[str]:
    """Beginnings of names behind which stands one that the map knows, and how many names each has."""
    found: Counter[str] = Counter()
    known: dict[str, bool] = {}
    for name in tensors:
        at = 0
        while True:
            rest = name[at:]
            if rest not in known:
                known[rest] = _is_known(rest, keys, names)
            if known[rest]:
                found[name[:at]] += 1
            dot = name.find(".", at)
            if dot < 0:
                break
            at = dot + 1
    return found


def _is_known(name: str, keys: KeyMap, names: Container[str]) -> bool:
    try:
        target = keys.ours(name)
    except KeyError:
        return False
    return target is not None and (target == POSITIONS or target.split("[")[0] in names)


def _fit(
    group: str,
    prefix: str,
    keys: KeyMap,
    found: Weights,
    wanted_of: Wanted,
    *,
    others: tuple[str, ...],
) -> Fit:
    """One candidate. others: longer prefixes in the same mapping, under which other candidates lie."""
    tensors = {
        name[len(prefix) :]: stored
        for name, stored in found.groups[group].items()
        if name.startswith(prefix)
    }
    sources: dict[str, list[str]] = {}
    leftover: list[str] = []
    for name in tensors:
        try:
            target = keys.ours(name)
        except KeyError:
            leftover.append(name)
            continue
        if target is not None:
            sources.setdefault(
                "patch_positions" if target == POSITIONS else target.split("[")[0], []
            ).append(name)
    problem, outlines = "", dict[str, Tensor]()
    try:
        known = {name: tensors[name].outline() for names in sources.values() for name in names}
        outlines = rename(known, keys, what="it")
    except InputError as error:
        problem = str(error).rstrip(".")
    wanted = wanted_of(outlines)
    surplus = [name for ours in outlines if ours not in wanted for name in sources.get(ours, ())]
    for name in [ours for ours in sources if ours not in wanted and ours in outlines]:
        del sources[name]
    leftover += surplus
    left_out = [
        name
        for name in leftover
        if HEAD.fullmatch(name.split(".")[0]) or (others and (prefix + name).startswith(others))
    ]
    return Fit(
        group=group,
        prefix=prefix,
        keys=keys,
        tensors=tensors,
        outlines=outlines,
        sources=sources,
        left_out=left_out,
        unknown=[name for name in leftover if name not in set(left_out)],
        missing=[] if problem else [name for name in wanted if name not in outlines],
        misshapen={
            name: (tuple(outlines[name].shape), tuple(tensor.shape))
            for name, tensor in wanted.items()
            if name in outlines and outlines[name].shape != tensor.shape
        },
        num_wanted=len(wanted),
        problem=problem,
    )


def roles(whole: Sequence[Fit]) -> dict[str, Fit]:
    """The first candidate of each branch, in the order in which they are preferred.

    Weights that no word describes are the teacher's beside a student's, and the student's beside a
    teacher's or an average.
    """
    said = {
        branch: fit
        for branch in PREFERRED
        if (fit := next((fit for fit in whole if fit.branch == branch), None))
    }
    if PLAIN in said and len(said) > 1:
        role = STUDENT if TEACHER in said or EMA in said else TEACHER
        plain = said.pop(PLAIN)
        said.setdefault(role, plain)
    return {branch: said[branch] for branch in PREFERRED if branch in said}


def choose(whole: Sequence[Fit], branch: str | None, *, file: str) -> tuple[str, Fit]:
    """The branch that is taken and its candidate: the one asked for, or the first of PREFERRED that
    is there.

    InputError for a branch that is not there. A file of plain weights is as good as a teacher's.
    """
    there = roles(whole)
    if branch is None:
        return next(iter(there.items()))
    if branch in there:
        return branch, there[branch]
    if PLAIN not in there:
        names = list(there)
        raise InputError(
            f"{file} has no {branch}, only a {' and a '.join(names)}; take it by --branch"
            f" {names[0]}."
        )
    if branch != TEACHER:
        raise InputError(
            f"{file} has only one set of weights, which is not said to be the {branch}'s; leave out"
            " --branch."
        )
    return PLAIN, there[PLAIN]


def remarks(branch: str, chosen: Fit, whole: Sequence[Fit], found: Weights) -> tuple[str, ...]:
    """What is to be said of a choice: whose weights were taken, and what was left out."""
    said = []
    owner = {
        TEACHER: " of the teacher",
        EMA: " of the moving average",
        STUDENT: " of the student",
        PLAIN: "",
    }
    if branch != PLAIN or chosen.place:
        under = f" under {chosen.place.rstrip('.')}" if chosen.place else ""
        others = [other for other in roles(whole) if other != branch]
        beside = f"; --branch {' or '.join(others)} takes the others" if others else ""
        said.append(f"{found.file.name}: read the weights{owner[branch]}{under}{beside}.")
    outside = [name for name in found.groups[chosen.group] if not name.startswith(chosen.prefix)]
    heads = list(
        dict.fromkeys(
            _short(name, chosen.prefix)
            for name in (*(chosen.prefix + n for n in chosen.left_out), *outside)
        )
    )
    if heads:
        count = counted(len(chosen.left_out) + len(outside), "tensor")
        said.append(f"{found.file.name}: left out {listed(heads)} ({count}).")
    return tuple(said)


def _short(name: str, prefix: str) -> str:
    """The first word of a name, and the next as long as they are those of the prefix."""
    words, ours = name.split("."), prefix.split(".")
    depth = next(
        (at for at, word in enumerate(words) if at >= len(ours) - 1 or word != ours[at]),
        len(words) - 1,
    )
    return ".".join(words[: depth + 1])


def found_names(found: Weights) -> str:
    """The names that a file has, by what they begin with, for a file in which no backbone was
    found."""
    beginnings: Counter[str] = Counter()
    for group, tensors in found.groups.items():
        for name in tensors:
            words = ([group] if group else []) + name.split(".")
            beginnings[".".join(words[:2]) + ("." if len(words) > 2 else "")] += 1
    shown = [
        f"{begin}… ({count})" if count > 1 else begin
        for begin, count in beginnings.most_common(SHOWN_PREFIXES)
    ]
    more = (
        f" and {len(beginnings) - SHOWN_PREFIXES} more" if len(beginnings) > SHOWN_PREFIXES else ""
    )
    return ", ".join(shown) + more
