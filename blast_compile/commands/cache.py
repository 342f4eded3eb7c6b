"""`blast-compile cache`: what the store of compiled kernels holds, and its care."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blast_compile.base.errors import BlastError
from blast_compile.commands.options import Json, num_bytes, seconds
from blast_compile.commands.output import errors_as_messages, fail, show, show_json, tell

if TYPE_CHECKING:
    from blast_compile.kernels.store.inventory import Entry

app = typer.Typer(help="Show the store of compiled kernels, verify it, and remove what is old.")


@app.callback(invoke_without_command=True)
def summary(context: typer.Context, json: Json = False) -> None:
    """Show how much the store holds."""
    if context.invoked_subcommand is not None:
        return
    from blast_compile.kernels.store.store import Store

    with errors_as_messages():
        report = Store.default().report()
    if json:
        show_json(
            {
                "root": str(report.root),
                "entries": report.num_entries,
                "damaged": report.num_damaged,
                "bytes": report.size_bytes,
                "is_writable": report.is_writable,
            }
        )
    else:
        size = f"{report.size_bytes / 2**20:.1f} MiB"
        typer.echo(f"{report.root}: entries {report.num_entries}, damaged {report.num_damaged}, {size}")


@app.command("list")
def list_(json: Json = False) -> None:
    """List every entry, the oldest first."""
    from blast_compile.kernels.store import inventory
    from blast_compile.kernels.store.store import Store

    with errors_as_messages():
        found = inventory.entries(Store.default())
    _show(found, json)


@app.command()
def verify(json: Json = False) -> None:
    """Compare every file with its hash; exit with 1 if one is damaged. Damaged entries are made again when needed."""
    from blast_compile.kernels.store import inventory
    from blast_compile.kernels.store.store import Store

    with errors_as_messages():
        found = list(inventory.verify(Store.default()))
    damaged = [entry for entry in found if entry.damage]
    if json:
        show_json({"entries": len(found), "damaged": [_plain(entry) for entry in damaged]})
    else:
        typer.echo(f"entries {len(found)}, damaged {len(damaged)}")
        for entry in damaged:
            typer.secho(f"{entry.path}: {entry.damage}", fg=typer.colors.RED)
    if damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="Remove entries made longer ago, such as 30d.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(help="Then remove the oldest ones until the rest fits, such as 500M.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Remove entries by age and size."""
    from blast_compile.kernels.store import inventory
    from blast_compile.kernels.store.store import Store

    if older_than is None and max_size is None:
        raise typer.BadParameter("expected --older-than, --max-size or both, got neither; `cache clear` removes all")
    age = None if older_than is None else seconds(older_than)
    most = None if max_size is None else num_bytes(max_size)
    with errors_as_messages():
        gone = inventory.prune(Store.default(), older_than_s=age, max_bytes=most)
    freed = sum(entry.size_bytes for entry in gone)
    if json:
        show_json({"removed": [_plain(entry) for entry in gone], "bytes": freed})
    else:
        typer.echo(f"removed {len(gone)}, {freed / 2**20:.1f} MiB")


@app.command()
def clear(
    plans: Annotated[bool, typer.Option("--plans", help="Remove what tuning measured, too.")] = False,
    json: Json = False,
) -> None:
    """Remove every stored kernel."""
    import shutil

    from blast_compile.kernels.store.store import Store

    with errors_as_messages():
        store = Store.default()
        removed = store.clear()
    if plans:
        try:
            shutil.rmtree(store.root / "plans")
        except FileNotFoundError:
            pass
        except OSError as error:
            fail(f"expected to remove {store.root / 'plans'}, got {error}; make it writable")
    if json:
        show_json({"root": str(store.root), "removed": removed})
    else:
        typer.echo(f"{store.root}: removed {removed}")


def _show(found: list[Entry], json: bool) -> None:
    if json:
        show_json([_plain(entry) for entry in found])
        return
    from rich.table import Table

    if not found:
        tell("no entries")
        return
    table = Table("entry", "kind", "made", "MiB", "torch", "what")
    for entry in found:
        days = (datetime.now(UTC) - entry.made).days
        age = f"{entry.made:%Y-%m-%d %H:%M} ({days} d)"
        cells = (entry.path.name[:12], entry.kind, age, f"{entry.size_bytes / 2**20:.2f}", entry.torch)
        table.add_row(*cells, _kernel(entry) or entry.what)
    show(table)


def _kernel(entry: Entry) -> str:
    """What the source computes, in a few words: its spec, target and what differs from the default config."""
    from blast_compile.codegen import spec_text
    from blast_compile.codegen.cpp.families import family_of
    from blast_compile.kernels.plans.config_text import difference

    if not entry.head:
        return ""
    spec, *more = entry.head
    try:
        known = spec_text.parse(spec)
        config = difference(more[0], family_of(known).default_config(known)) if more else ""
        return ", ".join(filter(None, (known.summary, known.target, config)))
    except (ValueError, TypeError, LookupError, AttributeError, BlastError):
        return spec  # the first words of another source, or a spec of another version


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "path": str(entry.path),
        "kind": entry.kind,
        "key": entry.what,
        "kernel": _kernel(entry),
        "made": entry.made.isoformat(),
        "bytes": entry.size_bytes,
        "torch": entry.torch,
        "damage": entry.damage,
    }
