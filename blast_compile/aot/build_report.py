"""What a build made, for people and for `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blast_compile.kernels.bundles import Artifact, Bundle, Skipped

_COLUMNS = (
    "registers",
    "vector_registers",
    "spills",
    "shared_bytes",
    "tensor_core_instructions",
    "occupancy",
)


@dataclass(frozen=True)
class BuildReport:
    """folder: of the bundle. seconds: of the whole build. size_bytes: of all its files."""

    bundle: Bundle
    seconds: float
    size_bytes: int

    @property
    def folder(self) -> Path:
        """Where the bundle lies."""
        return self.bundle.folder

    @property
    def kernels(self) -> tuple[Artifact, ...]:
        """What is in it."""
        return self.bundle.contents.kernels

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is not, and why."""
        return self.bundle.contents.skipped

    def __str__(self) -> str:
        """A line a kernel, and a line for each that has none."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        number = len(self.bundle.contents.targets)
        targets = f"{number} target" + "s" * (number != 1)
        yield (
            f"{self.folder}: {len(self.kernels)} kernels for {targets}, {self.size_bytes / 2**20:.1f} MiB, "
            f"built in {self.seconds:.1f} s"
        )
        yield from markdown(self.kernels, self.skipped)


def markdown(kernels: tuple[Artifact, ...], skipped: tuple[Skipped, ...]) -> Iterator[str]:
    """The tables of a report, as lines of Markdown."""
    yield ""
    yield f"| target | kernel | tokens | config | {' | '.join(name.replace('_', ' ') for name in _COLUMNS)} |"
    yield "|" + " --- |" * (4 + len(_COLUMNS))
    for artifact in kernels:
        tokens = ", ".join(map(str, artifact.tokens))
        facts = " | ".join(str(artifact.facts.get(name, "")) for name in _COLUMNS)
        yield f"| {artifact.spec.target} | {artifact.spec.summary} | {tokens} | {artifact.name} | {facts} |"
    if skipped:
        yield ""
        yield "| target | without a kernel | why |"
        yield "| --- | --- | --- |"
        for skip in skipped:
            yield f"| {skip.target} | {skip.what} | {skip.reason} |"
