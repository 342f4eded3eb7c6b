"""Plans of the test's own, beside the kernels of the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast_compile.base import processor
from blast_compile.kernels.plans.database import Database


def keep_plans_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the database of the user into a folder; kernels stay where they are."""

    def default(device: str | None = None) -> Database:
        return Database(folder, device or processor.device_name())

    monkeypatch.setattr(Database, "default", default)
