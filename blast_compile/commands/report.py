"""`blast-compile report MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blast_compile.commands.options import (
    Json,
    ModelChoice,
    Threads,
    Tokens,
    is_asked_for,
    numbers,
    takes_model,
    use_threads,
)
from blast_compile.commands.output import errors_as_messages, fail, show, tell


@takes_model
def report(
    choice: ModelChoice,
    context: typer.Context,
    html: Annotated[Path, typer.Option(dir_okay=False, help="Where the page goes.")] = Path("blast-report.html"),
    tokens: Tokens = "1,16,512",
    seconds: Annotated[float, typer.Option(min=0, help="How long each op is timed, for each number of tokens.")] = 0.5,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Time a model's sparse layers, and write a page that shows what runs, how fast, how near the limit, and why."""
    import torch

    from blast_compile.commands.model import load
    from blast_compile.report.data import as_json
    from blast_compile.report.gather import Effort, gather
    from blast_compile.report.page.html import html as page_of
    from blast_compile.report.pictures import masks_of
    from blast_compile.report.terminal import tables

    wanted = numbers(tokens)
    if not html.parent.is_dir():  # said before minutes of timing, not after
        fail(f"expected a file in a folder that exists, got {html}; make the folder, or name another file with --html")
    use_threads(threads)
    with errors_as_messages():
        loaded = load(choice)
        wanted = loaded.tokens(wanted, is_asked=is_asked_for(context, "tokens"))
        args, kwargs = loaded.inputs(max(wanted))
        with torch.no_grad():
            found = gather(
                loaded.model, args, kwargs, name=loaded.name, tokens=wanted, effort=Effort(seconds=seconds), tell=tell
            )
        page = page_of(found, masks_of(loaded.model))
    try:
        html.write_text(page)
    except OSError as error:
        fail(f"expected to write {html}, got {error}; name another file with --html")
    if json:
        typer.echo(as_json(found))
    else:
        show(tables(found))
    tell(f"page in {html} ({html.stat().st_size // 1024} KiB)")
