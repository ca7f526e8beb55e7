"""Choose whose weights to take from a checkpoint: the teacher's, an average's or the student's."""

from __future__ import annotations

from collections.abc import Sequence

from featkit.errors import InputError
from featkit.wording import counted
from featkit_train.published.fitting import Fit
from featkit_train.published.renaming import listed
from featkit_train.published.weight_files import Weights

TEACHER, EMA, PLAIN, STUDENT = "teacher", "ema", "plain", "student"
PREFERRED = (TEACHER, EMA, PLAIN, STUDENT)
# Words in the prefix of a weight's name that identify its branch.
WORDS = {
    TEACHER: frozenset(("teacher", "momentum", "target", "key")),
    EMA: frozenset(("ema", "averaged", "avg", "swa")),
    STUDENT: frozenset(("student", "online", "query")),
}
OWNERS = {
    TEACHER: " of the teacher",
    EMA: " of the moving average",
    STUDENT: " of the student",
    PLAIN: "",
}


def branch_of(fit: Fit) -> str:
    """Return the branch of a candidate's weights, by the words in their prefix."""
    words = {word for part in fit.place.lower().split(".") for word in part.split("_")}
    return next((branch for branch in (TEACHER, EMA, STUDENT) if words & WORDS[branch]), PLAIN)


def roles(candidates: Sequence[Fit]) -> dict[str, Fit]:
    """Return the first candidate of each branch, the preferred branch first.

    Unmarked weights are the student's if the file also has a teacher or an average, and the
    teacher's if it also has a student.
    """
    first: dict[str, Fit] = {}
    for fit in candidates:
        first.setdefault(branch_of(fit), fit)
    if PLAIN in first and len(first) > 1:
        role = STUDENT if TEACHER in first or EMA in first else TEACHER
        plain = first.pop(PLAIN)
        first.setdefault(role, plain)
    return {branch: first[branch] for branch in PREFERRED if branch in first}


def choose(candidates: Sequence[Fit], branch: str | None, *, file: str) -> tuple[str, Fit]:
    """Return the branch to take and its candidate: the one asked for, or the preferred one.

    A single unmarked set of weights counts as the teacher's. InputError if the
    file does not have the branch.
    """
    by_branch = roles(candidates)
    if branch is None:
        return next(iter(by_branch.items()))
    if branch in by_branch:
        return branch, by_branch[branch]
    if PLAIN not in by_branch:
        names = list(by_branch)
        raise InputError(
            f"{file} has no {branch}, only a {' and a '.join(names)}. Use --branch {names[0]}."
        )
    if branch != TEACHER:
        raise InputError(
            f"{file} has only one set of weights, and nothing in it names them the {branch}'s."
            " Leave out --branch."
        )
    return PLAIN, by_branch[PLAIN]


def remarks(branch: str, chosen: Fit, candidates: Sequence[Fit], file: Weights) -> tuple[str, ...]:
    """Return sentences for the user: whose weights were taken, and what was left out."""
    sentences = []
    if branch != PLAIN or chosen.place:
        under = f" under {chosen.place.rstrip('.')}" if chosen.place else ""
        others = [other for other in roles(candidates) if other != branch]
        hint = f"; --branch {' or '.join(others)} takes the others" if others else ""
        sentences.append(f"{file.file.name}: read the weights{OWNERS[branch]}{under}{hint}.")
    outside = [name for name in file.groups[chosen.group] if not name.startswith(chosen.prefix)]
    left_out = [*(chosen.prefix + name for name in chosen.left_out), *outside]
    if left_out:
        heads = list(dict.fromkeys(_shortened(name, chosen.prefix) for name in left_out))
        count = counted(len(left_out), "tensor")
        sentences.append(f"{file.file.name}: left out {listed(heads)} ({count}).")
    return tuple(sentences)


def _shortened(name: str, prefix: str) -> str:
    """Return the words of a name up to the first that differs from the prefix."""
    words, prefix_words = name.split("."), prefix.split(".")
    depth = next(
        (
            at
            for at, word in enumerate(words)
            if at >= len(prefix_words) - 1 or word != prefix_words[at]
        ),
        len(words) - 1,
    )
    return ".".join(words[: depth + 1])
