"""Where the templates of C++ are, and how they are filled in."""

from __future__ import annotations

from functools import cache

import jinja2


@cache
def environment() -> jinja2.Environment:
    """Of `templates/cpp`; a name that is not given is an error."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("blast_compile.codegen", "templates/cpp"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    found.filters["cpp"] = lambda flag: "true" if flag else "false"
    return found
