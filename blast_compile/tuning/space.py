"""The search space of a problem: fragments of its config's fields, and the reasons why some points are not tried."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from blast_compile.codegen.cpp.config import CpuConfig, can_split, default_config, is_direct, why_impossible
from blast_compile.kernels.plans.problem import Problem
from blast_compile.tuning.cost_cpu import num_rows, shares_tokens
from blast_compile.tuning.fragments import Choice, Fragment, Integer, PowerOfTwo

_KIB = 1024
_OF_WEIGHT_GRADS = ("token_tile", "vectors", "unroll", "threads")
_NO_ROWS = "a weight gradient has tiles of inputs by outputs, and no rows of results"
_ROWS_A_THREAD = 4  # block rows of uneven length even out from here on


@dataclass(frozen=True)
class Space:
    """Configs of one problem: `default` with the fields of `fragments` changed, where nothing speaks against it."""

    problem: Problem
    default: CpuConfig
    fragments: Mapping[str, Fragment]

    def all(self) -> Iterator[CpuConfig]:
        """Every point that may be tried, the default first."""
        yield self.default
        for values in product(*(fragment.values() for fragment in self.fragments.values())):
            config = _with(self.default, dict(zip(self.fragments, values, strict=True)))
            if config != self.default and not reason_against(self.problem, config):
                yield config

    def random(self, rng: random.Random) -> CpuConfig:
        """A point that may be tried; fields that gain nothing keep their defaults."""
        while True:
            config = _with(self.default, {name: fragment.random(rng) for name, fragment in self.fragments.items()})
            idle = [name for name, _ in _idle(self.problem, config)]
            config = _with(config, {name: getattr(self.default, name) for name in idle})
            if not reason_against(self.problem, config):
                return config

    def neighbours(self, config: CpuConfig) -> Iterator[CpuConfig]:
        """Points that differ from `config` in one step of one field."""
        for name, fragment in self.fragments.items():
            for value in fragment.neighbours(getattr(config, name)):
                near = _with(config, {name: value})
                if not reason_against(self.problem, near):
                    yield near

    def ends(self, name: str) -> list[CpuConfig]:
        """The default with the first or the last value of one field instead of its own."""
        values = self.fragments[name].values()
        found = [_with(self.default, {name: value}) for value in (values[0], values[-1])]
        return [end for end in found if end != self.default and not reason_against(self.problem, end)]

    def only(self, *names: str) -> Space:
        """The part of the space in which all other fields keep their defaults."""
        return replace(self, fragments={name: self.fragments[name] for name in names})


def space_of(problem: Problem) -> Space:
    """The search space of a CPU problem."""
    default = default_config(problem.spec)
    fragments: dict[str, Fragment] = {
        "token_tile": Integer(default.token_tile, 4, default.token_tile + 2, 2),
        "vectors": PowerOfTwo(default.vectors, 1, 4),
        "row_group": PowerOfTwo(default.row_group, 1, 16),
        "share": Choice(("auto", "tokens", "rows")),
        "share_tokens": Integer(64, 16, 128, 16),
        "panel_bytes": Integer(default.panel_bytes, 320 * _KIB, 2240 * _KIB, 320 * _KIB),
        "task_bytes": PowerOfTwo(256 * _KIB, 32 * _KIB, 1024 * _KIB),
        "span": PowerOfTwo(512, 128, 2048),
        "stream_bytes": Choice((1024 * _KIB, 64 * _KIB, 2**40)),
        "prefetch_bytes": PowerOfTwo(default.prefetch_bytes, 1024, 32768),
        "fetch_ahead": Integer(3, 1, 6),
        "chains": PowerOfTwo(4, 1, 8),
        "unroll": PowerOfTwo(1, 1, 4),
        "threads": Choice((0, 1)),
        "split": PowerOfTwo(1, 1, 16),
    }
    if problem.op == "weight_grad":
        fragments = {name: fragments[name] for name in _OF_WEIGHT_GRADS}
    return Space(problem, default, fragments)


def reason_against(problem: Problem, config: CpuConfig) -> str:
    """Why a config is not tried: it cannot run, or gains nothing over another; empty where nothing is against it."""
    if reason := why_impossible(problem.spec, config):
        return reason
    default = default_config(problem.spec)
    for name, why in _idle(problem, config):
        if getattr(config, name) != getattr(default, name):
            return f"{name} gains nothing: {why}"
    return ""


def _idle(problem: Problem, config: CpuConfig) -> Iterator[tuple[str, str]]:
    """The fields that gain nothing beside the others, and why."""
    if problem.op == "weight_grad":
        yield from ((name.name, _NO_ROWS) for name in fields(CpuConfig) if name.name not in _OF_WEIGHT_GRADS)
        if problem.threads == 1:
            yield "threads", "there is one thread"
        return
    default = default_config(problem.spec)
    tokens, threads = problem.tokens, min(problem.threads, config.threads or problem.threads)
    shared = shares_tokens(problem, config, threads)
    usual = shares_tokens(problem, replace(config, share="auto"), threads)
    whole = shares_tokens(problem, replace(config, split=1), threads)
    for name, is_idle, why in (
        ("prefetch_bytes", not is_direct(problem.spec), "gathered blocks are fetched by fetch_ahead"),
        ("fetch_ahead", is_direct(problem.spec), "blocks are read where they lie"),
        ("share", shared == usual, "auto does the same"),
        ("share_tokens", not shared, "threads share block rows"),
        ("task_bytes", shared, "threads share tokens"),
        ("span", shared or tokens <= min(config.span, default.span), "all tokens are in one span"),
        ("panel_bytes", not shared and tokens <= config.token_tile, "there is one tile of tokens"),
        ("token_tile", tokens <= 4, "there are fewer tokens than a tile has"),
        ("chains", tokens > 64, "tiles of one or two tokens are rare"),
        ("threads", problem.threads == 1, "there is one thread"),
        ("split", not can_split(problem.spec), "gathered rows are whole"),
        ("split", threads == 1, "there is one thread"),
        ("split", whole, "threads share tokens"),
        ("split", num_rows(problem) >= _ROWS_A_THREAD * threads, "there are block rows enough"),
        ("stream_bytes", tokens * problem.outputs * problem.x_bytes < 64 * _KIB, "results are small"),
    ):
        if is_idle:
            yield name, why


def _with(config: CpuConfig, values: Mapping[str, Any]) -> CpuConfig:
    return replace(config, **values)
