"""What tuning chose on this machine for the kernels of a bundle, to be shipped with them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from blast_compile.base import folders
from blast_compile.base.errors import RecordError, StoreError
from blast_compile.base.log import logger
from blast_compile.codegen.cpp.config import CpuConfig, why_impossible
from blast_compile.codegen.spec import Spec
from blast_compile.kernels.bundles import PLANS
from blast_compile.kernels.plans.config_text import parse
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.record import Record


def chosen(specs: Iterable[Spec]) -> list[Record]:
    """The chosen records of this machine for these kernels, those whose config this version can build."""
    wanted = set(specs)
    try:
        database = Database.default()
        records = list(database.records())
    except StoreError as error:
        logger.info("a bundle is built without plans: %s", error)
        return []
    return [
        record
        for record in records
        if record.outcome == "chosen"
        and record.device == database.device
        and record.problem.spec in wanted
        and _config(record) is not None
    ]


def configs(records: Iterable[Record], spec: Spec) -> dict[CpuConfig, tuple[int, ...]]:
    """Their configs for one kernel, each with the numbers of tokens that it was chosen for, ascending."""
    found: dict[CpuConfig, set[int]] = {}
    for record in records:
        if record.problem.spec == spec and (config := _config(record)) is not None:
            found.setdefault(config, set()).add(record.problem.tokens)
    return {config: tuple(sorted(tokens)) for config, tokens in found.items()}


def files(records: Iterable[Record]) -> dict[str, bytes]:
    """A plan database of these records, by path in the bundle."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="blast-", dir=folders.private_folder()) as folder:
        root = Path(folder, "plans")
        for record in records:
            Database(root, record.device).add(record)
        for path in sorted(root.rglob("chosen-*.json")):
            found[f"{PLANS}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return found


def _config(record: Record) -> CpuConfig | None:
    try:
        config = parse(record.config)
    except RecordError:
        return None
    return config if isinstance(config, CpuConfig) and not why_impossible(record.problem.spec, config) else None
