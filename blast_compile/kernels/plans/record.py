"""What was measured of one configuration: a `Record`, one JSON text each, and what wrote it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from blast_compile.base.errors import RecordError
from blast_compile.kernels.plans.problem import Problem

FORMAT = 1
Outcome = Literal["chosen", "lost", "rejected"]
MAX_RECORD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Record:
    """One configuration on one problem.

    config: its `repr`. Times are microseconds of one call: of the kernel alone, median and deciles, and of the default
    configuration's in the same rounds; of a chosen one's op as a model calls it, and of the dense op in its rounds;
    what the cost model said of the kernel; what the machine's memory and arithmetic allow. rank: place among the
    measured ones of the search, the fastest first. outcome: the chosen one of a problem, one that lost, or one that was
    not timed, for `reason`. device: which machine. versions: of what wrote it.
    """

    problem: Problem
    config: str
    outcome: Outcome
    device: str
    median_us: float | None = None
    p10_us: float | None = None
    p90_us: float | None = None
    default_us: float | None = None
    op_us: float | None = None
    dense_us: float | None = None
    predicted_us: float | None = None
    limit_us: float | None = None
    rank: int | None = None
    reason: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    date: str = ""

    @property
    def relative(self) -> float:
        """Time over that of the default configuration in the same rounds; infinite where it was not timed."""
        if self.median_us is None or not self.default_us:
            return math.inf
        return self.median_us / self.default_us

    def to_text(self) -> str:
        """JSON, with a checksum of the rest, so that an edited or half-written one is found."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps({"sha256": _checksum(content), **content}, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes) -> Record:
        """From what `to_text` gave; anything else is a `RecordError`, whatever it is."""
        try:
            return _record(json.loads(text))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise RecordError(f"expected a record of blast_compile, got {type(error).__name__}: {error}") from error


def now() -> str:
    """The time of a measurement, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def digest(*parts: object) -> str:
    """A short name for a combination of plain values."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:24]


def _record(value: Any) -> Record:
    checksum = value.pop("sha256")
    if checksum != _checksum(value):
        raise ValueError("its checksum does not fit, so it was edited or is damaged")
    if (number := value.pop("format")) != FORMAT:
        raise ValueError(f"it is of format {number!r}, this version reads {FORMAT}")
    value.setdefault("op_us", None)  # older records have none
    known = {field.name for field in fields(Record)}
    if set(value) != known:
        raise ValueError(f"its fields are {sorted(value)}")
    for name in ("config", "device", "reason", "date"):
        _expect(isinstance(value[name], str), name)
    _expect(value["outcome"] in get_args(Outcome), "outcome")
    _expect(value["rank"] is None or type(value["rank"]) is int, "rank")
    for name in known:
        if name.endswith("_us"):
            time = value[name]
            _expect(time is None or (isinstance(time, float | int) and math.isfinite(time) and time >= 0), name)
    versions = tuple((str(name), str(version)) for name, version in value["versions"])
    return Record(**{**value, "problem": Problem.from_json(value["problem"]), "versions": versions})


def _expect(is_good: bool, name: str) -> None:
    if not is_good:
        raise ValueError(f"its {name} is not what it should be")


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
