"""Promises that hold for every method of METHODS."""

from __future__ import annotations

import dataclasses

from featkit_train.config import TrainConfig
from featkit_train.methods import METHODS
from featkit_train.methods.base import READ_BY_EVERY_RUN


def test_every_section_is_read_by_a_method_or_every_run() -> None:
    config = TrainConfig()
    sections = {
        field.name
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name))
    }
    assert sections == READ_BY_EVERY_RUN.union(*(method.reads for method in METHODS.values()))
    for method in METHODS.values():
        assert method.unread() == sections - READ_BY_EVERY_RUN - method.reads
