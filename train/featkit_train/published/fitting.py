"""Find the backbone among the tensors of a file: the prefix under which names and shapes fit.

A training saves more than a backbone: teacher and student, an average of the weights, heads,
losses, the optimizer. Every mapping in the file and every prefix of its names is a candidate. A
candidate fits if it has every weight of the backbone in the right shape. `branches` chooses among
several that fit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from featkit.errors import InputError
from featkit.wording import counted
from featkit_train.published.key_maps import POSITIONS, KeyMap
from featkit_train.published.renaming import listed, rename
from featkit_train.published.weight_files import Group, Weights

# Names of modules that training adds to a backbone, such as heads.
HEAD = re.compile(
    r"(?:\w+_)?(?:heads?|classifier|projector|projection|predictor|prediction|queue|prototypes?"
    r"|pooler|decoder|aux)(?:_\w+)?\d*"
    r"|fc|last_linear|last_layer|linear|mlp|center|criterion|loss|n_averaged|num_updates|initted"
    r"|step|logit_scale|logit_bias"
)
# A prefix that fits fewer names than this share of the best prefix fits them by chance.
MIN_SHARE = 0.2
SHOWN_PREFIXES, SHOWN_SHAPES = 4, 2

# Maps a candidate's tensors, without data, to those that the backbone needs. Some sizes follow from
# the file, such as that of the position table.
Wanted = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A candidate: the tensors under `prefix` in the mapping `group`, renamed by `keys`.

    outlines: the tensors under our names, on the device `meta`. sources: the file's names for each
    of ours. left_out: the file's names of heads. missing: our names that the file lacks. unknown:
    the file's names that the backbone lacks. misshapen: our names, with the file's shape and ours.
    num_wanted: number of the backbone's weights. problem: why the tensors could not be renamed.
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
        """True if the candidate has every weight of the backbone and nothing else."""
        return not (self.missing or self.unknown or self.misshapen or self.problem)

    @property
    def place(self) -> str:
        """The prefix with its group, such as `teacher.backbone.`; "" for a plain state dict."""
        return (f"{self.group}." if self.group else "") + self.prefix

    @property
    def num_matching(self) -> int:
        """Number of the backbone's weights that the candidate has in the right shape."""
        return self.num_wanted - len(self.missing) - len(self.misshapen)

    def source(self, name: str) -> str:
        """Return the file's name for one of ours."""
        # Both position tables are one tensor in files.
        name = "patch_positions" if name == "class_position" else name
        return self.place + self.sources[name][0] if name in self.sources else name

    def read(self, what: str) -> dict[str, Tensor]:
        """Read the tensors and return them under our names. what: the file, for messages."""
        stored = [name for names in self.sources.values() for name in names]
        return rename({name: self.tensors[name].read() for name in stored}, self.keys, what=what)

    def mismatches(self) -> str:
        """Describe the mismatches in a clause, with the file's names and both shapes."""
        clauses = [self.problem] if self.problem else []
        if self.missing:
            clauses.append(
                f"it lacks {listed(list(self.missing))} ({len(self.missing)} of"
                f" {counted(self.num_wanted, 'weight')})"
            )
        if self.unknown:
            names = listed([self.place + name for name in self.unknown])
            clauses.append(f"it has {names}, which the model does not have")
        # One table holds both kinds of positions, so its shape is reported once.
        shapes = [
            self._shapes(name)
            for name in self.misshapen
            if name != "class_position" or len(self.misshapen) == 1
        ]
        return "; ".join([*clauses, *shapes[:SHOWN_SHAPES]])

    def _shapes(self, name: str) -> str:
        theirs, ours = self.misshapen[name]
        if name == "patch_positions":  # as the one table in the file: (1, 1 + G * G, D)
            theirs = self.tensors[self.sources[name][0]].shape
            ours = (1, 1 + ours[0] * ours[1], ours[2])
        return f"{self.source(name)} is {theirs}, not {ours}"


def fits(
    file: Weights, maps: Sequence[KeyMap], wanted: Wanted, *, names: Container[str]
) -> list[Fit]:
    """Return every candidate, those that fit first, then those that lack least.

    names: all names of the backbone's tensors. Empty if the file has none of them.
    """
    candidates = [
        (count, group, prefix, keys)
        for keys in maps
        for group, tensors in file.groups.items()
        for prefix, count in prefixes(tensors, keys, names).items()
    ]
    most = max((count for count, *_ in candidates), default=0)
    likely = [candidate for candidate in candidates if candidate[0] >= MIN_SHARE * most]
    tried = []
    for _, group, prefix, keys in likely:
        nested = [
            other
            for _, its_group, other, _ in likely
            if its_group == group and other != prefix and other.startswith(prefix)
        ]
        tried.append(_fit(file, group, prefix, keys, wanted, nested=tuple(nested)))
    return sorted(
        tried,
        key=lambda fit: (not fit.whole, bool(fit.problem), len(fit.missing) + len(fit.unknown)),
    )


def prefixes(tensors: Group, keys: KeyMap, names: Container[str]) -> Counter[str]:
    """Return every prefix of a known name, with the number of names under it."""
    counts: Counter[str] = Counter()
    known: dict[str, bool] = {}
    for name in tensors:
        start = 0
        while True:
            rest = name[start:]
            if rest not in known:
                known[rest] = _is_known(rest, keys, names)
            if known[rest]:
                counts[name[:start]] += 1
            dot = name.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    return counts


def _is_known(name: str, keys: KeyMap, names: Container[str]) -> bool:
    try:
        target = keys.ours(name)
    except KeyError:
        return False
    return target is not None and (target == POSITIONS or target.split("[")[0] in names)


def _fit(
    file: Weights,
    group: str,
    prefix: str,
    keys: KeyMap,
    wanted_of: Wanted,
    *,
    nested: tuple[str, ...],
) -> Fit:
    """Compare one candidate with the backbone. nested: longer prefixes of other candidates."""
    tensors = {
        name[len(prefix) :]: stored
        for name, stored in file.groups[group].items()
        if name.startswith(prefix)
    }
    sources, leftover = _sources(tensors, keys)
    outlines, problem = _outlines(tensors, sources, keys)
    wanted = wanted_of(outlines)
    # Names that the map knows and this backbone does not have, such as a block beyond its depth.
    for name in outlines:
        if name not in wanted:
            leftover += sources.pop(name, ())
    left_out = [
        name
        for name in leftover
        if HEAD.fullmatch(name.split(".")[0]) or (prefix + name).startswith(nested)
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


def _sources(tensors: Group, keys: KeyMap) -> tuple[dict[str, list[str]], list[str]]:
    """Return the file's names for each of ours, and the names that the map does not know."""
    sources: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name in tensors:
        try:
            target = keys.ours(name)
        except KeyError:
            unknown.append(name)
            continue
        if target is not None:
            ours = "patch_positions" if target == POSITIONS else target.split("[")[0]
            sources.setdefault(ours, []).append(name)
    return sources, unknown


def _outlines(
    tensors: Group, sources: Mapping[str, Sequence[str]], keys: KeyMap
) -> tuple[dict[str, Tensor], str]:
    """Return the renamed tensors on the device `meta`, or none and what prevents renaming."""
    known = {name: tensors[name].outline() for names in sources.values() for name in names}
    try:
        return rename(known, keys, what="it"), ""
    except InputError as error:
        return {}, str(error).rstrip(".")


def beginnings(file: Weights) -> str:
    """Return the beginnings of the names in a file without a recognized backbone."""
    counts: Counter[str] = Counter()
    for group, tensors in file.groups.items():
        for name in tensors:
            words = ([group] if group else []) + name.split(".")
            counts[".".join(words[:2]) + ("." if len(words) > 2 else "")] += 1
    shown = [
        f"{beginning}… ({count})" if count > 1 else beginning
        for beginning, count in counts.most_common(SHOWN_PREFIXES)
    ]
    more = f" and {len(counts) - SHOWN_PREFIXES} more" if len(counts) > SHOWN_PREFIXES else ""
    return ", ".join(shown) + more
