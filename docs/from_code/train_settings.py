"""Every setting of a training run: what `featkit train --settings` prints, by section."""

from __future__ import annotations

import inspect
from operator import attrgetter

from featkit_train.config import TrainConfig
from featkit_train.setting_docs import Setting, list_settings
from from_code.markdown import code, table


def settings_page() -> str:
    """Return a heading, a description and a table of settings for each section."""
    sections: dict[str, list[Setting]] = {}
    for setting in list_settings():
        section = setting.name.rpartition(".")[0]
        sections.setdefault(section.partition(".")[0], [])  # before the sections within it
        sections.setdefault(section, []).append(setting)
    parts = []
    for section, settings in sections.items():
        level = "###" if "." in section else "##"
        parts += [
            f"{level} {section or 'The run as a whole'}",
            _description(section),
            _table(settings),
        ]
    return "\n\n".join(parts)


def _description(section: str) -> str:
    config = attrgetter(section)(TrainConfig()) if section else TrainConfig()
    return (inspect.getdoc(config) or "").split("\n\n")[0]


def _table(settings: list[Setting]) -> str:
    rows = [
        (
            code(setting.name.rpartition(".")[2]),
            setting.values,
            code(setting.default_text),
            setting.doc,
        )
        for setting in settings
    ]
    return table(("setting", "values", "default", "meaning"), rows)
