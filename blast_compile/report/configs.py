"""A configuration in few words: what is different about it."""

from __future__ import annotations

from dataclasses import fields

from blast_compile.errors import RecordError
from blast_compile.tuning.configs import Config, parse


def difference(text: str, base: Config) -> str:
    """The fields in which a config, as its `repr`, differs from another one: `row_group 2, span 256`."""
    try:
        config = parse(text)
    except RecordError:
        return text
    if type(config) is not type(base):
        return text
    changed = [field.name for field in fields(base) if getattr(config, field.name) != getattr(base, field.name)]
    return ", ".join(f"{name} {getattr(config, name)}" for name in changed) or "the default"
