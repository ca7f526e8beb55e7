"""Every setting of a training run, as `featkit train --settings` lists them."""

from __future__ import annotations

import inspect

from featkit_train.config import TrainConfig, field_types
from featkit_train.methods import METHODS
from featkit_train.setting_docs import Setting, list_settings
from from_code.markdown import code, prose, table


def settings_page() -> str:
    """The settings of the run as a whole, then those of each section."""
    sections: dict[str, list[Setting]] = {}
    for setting in list_settings():
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    parts = []
    for section, settings in sections.items():
        parts.append(f"## {section or 'The run as a whole'}")
        parts += [_about(section), _readers(section)]
        parts.append(table(("setting", "values", "default", "meaning"), map(_row, settings)))
    return "\n\n".join(part for part in parts if part)


def _readers(section: str) -> str:
    """Which methods read a section, if not all."""
    readers = [name for name, method in METHODS.items() if section not in method.unread()]
    if not section or "." in section or len(readers) == len(METHODS):
        return ""
    return f"Read by {', '.join(map(code, readers))}."


def _row(setting: Setting) -> tuple[str, str, str, str]:
    name = setting.name.rpartition(".")[2]
    values = setting.values if setting.type != "section" else "a section"
    return code(name), values.replace("|", "or"), code(setting.default_text), prose(setting.doc)


def _about(section: str) -> str:
    """The first paragraph of a section's class, on one line."""
    kind = TrainConfig
    for name in section.split(".") if section else ():
        kind = field_types(kind)[name]
    text = inspect.getdoc(kind) or ""
    return prose(" ".join(text.split("\n\n")[0].split())) if section else ""
