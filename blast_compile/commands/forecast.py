"""`blast-compile plan [MODEL]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from blast_compile.base.errors import OptionsError
from blast_compile.commands.options import Json, ModelChoice, Targets
from blast_compile.commands.output import errors_as_messages, show, show_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from blast_compile.codegen.spec import Dtype
    from blast_compile.report.forecast.estimate import Forecast, Setting
    from blast_compile.report.forecast.shapes import ModelShape

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_THIS_CPU = "this-cpu"


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="llama-1b, llama-8b, llama-70b, llama-405b, a config.json or folder of transformers, or "
            "module:function; without one, all four Llamas.",
            show_default=False,
        ),
    ] = None,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Fraction of zero blocks of the targets.")] = 0.95,
    block: Annotated[int, typer.Option(min=1, max=256, help="Edge of a block.")] = 128,
    targets: Targets = "mlp",
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of weights and activations.")] = "bf16",
    device: Annotated[
        str, typer.Option(help="A100-80GB, H100, H200, B200, MI300X, RTX 4090, or this-cpu, which is measured.")
    ] = "H100",
    devices: Annotated[int, typer.Option(min=1, help="How many share the model.")] = 1,
    context: Annotated[int, typer.Option(min=0, help="Tokens behind a decoded one.")] = 4096,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prefill.")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 1,
    json: Json = False,
) -> None:
    """Predict memory and time per token of a sparse model from the cost model, BLaST's claims beside ours."""
    from blast_compile.layers.sparsify import BlockSparse
    from blast_compile.report.forecast.estimate import Setting, forecast
    from blast_compile.report.forecast.shapes import LLAMAS

    with errors_as_messages():
        config = BlockSparse(
            sparsity=sparsity, block=block, targets=targets if targets in ("mlp", "all") else [targets]
        )
        chosen = cast("Dtype", _DTYPES[dtype])
        setting = Setting(_device(device), devices, chosen, sparsity, block, context, prompt, batch)
        names = list(LLAMAS) if model is None else [model]
        found = [forecast(_shape(name, config), setting) for name in names]
    if json:
        show_json({"setting": _plain_setting(setting), "models": [_plain(each) for each in found], "claims": _claims()})
    else:
        show(_tables(found, setting))


def _device(name: str) -> Any:
    from blast_compile.tuning.devices import PROFILES

    if name == _THIS_CPU:
        import torch

        from blast_compile.base.processor import cpu_model
        from blast_compile.tuning.machine import this_cpu

        return replace(this_cpu(torch.get_num_threads()), name=cpu_model())  # its own is a key, with caches and all
    if name not in PROFILES:
        raise typer.BadParameter(f"expected a device among {', '.join((*PROFILES, _THIS_CPU))}, got {name!r}")
    return PROFILES[name]


def _shape(name: str, config: Any) -> ModelShape:
    from blast_compile.commands.model import build_dense
    from blast_compile.report.forecast.shapes import LLAMAS, llama, shape_of

    if name in LLAMAS:
        return shape_of(name, llama(name), config)
    exists = Path(name).expanduser().exists()
    if not exists and ":" not in name:
        raise OptionsError(
            f"expected {', '.join(LLAMAS)}, a folder of transformers, a config.json, or module:function, got {name!r}, "
            "which is none of them; correct it"
        )
    shown = Path(name).stem if exists else name
    return shape_of(shown, build_dense(ModelChoice(name)), config)


def _tables(found: Sequence[Forecast], setting: Setting) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    from blast_compile.report.forecast.tables import columns, notes, rows

    title = (
        f"{setting.sparsity:.0%} of the blocks of {setting.block} x {setting.block} zero, {setting.dtype}, "
        f"{setting.devices} x {setting.device.name}, batch {setting.batch}, {setting.context} tokens of context"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name, justify in columns():
        table.add_column(name, justify=justify)
    for row in rows(found):
        table.add_row(*row)
    return Group(table, *notes(found, setting))


def _plain_setting(setting: Setting) -> dict[str, Any]:
    plain = {name: value for name, value in vars(setting).items() if name != "device"}
    return {**plain, "device": setting.device.name, "source": setting.device.source}


def _plain(found: Forecast) -> dict[str, Any]:
    return {
        "name": found.shape.name,
        "weights": found.shape.num_weights,
        "sparse_share": found.shape.sparse_share,
        "dense": asdict(found.dense),
        "sparse": asdict(found.sparse),
        "memory_gain": found.memory_gain,
        "decode_gain": found.decode_gain,
        "prefill_gain": found.prefill_gain,
    }


def _claims() -> list[dict[str, Any]]:
    from blast_compile.report.forecast.claims import CLAIMS

    return [asdict(claim) for claim in CLAIMS]
