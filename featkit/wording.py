"""Words that messages share."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: "1 picture", "2 pictures", "1,234 pictures"; `plural` defaults to the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
