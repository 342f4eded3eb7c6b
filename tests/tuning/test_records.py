"""Records and configs as text: what was written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast_compile.base.errors import RecordError
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.kernels.plans.config_text import parse
from blast_compile.kernels.plans.problem import Problem, density_bucket, token_bucket
from blast_compile.kernels.plans.record import Record, _checksum
from tests.tuning.cases import problem, record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_records_survive_their_text() -> None:
    written = record(median_us=1.5, versions=(("torch", "2.13.0"),), rank=3, outcome="chosen")
    assert Record.from_text(written.to_text()) == written


def test_a_record_from_before_the_op_was_timed_is_read() -> None:
    content = json.loads(record().to_text())
    del content["op_us"], content["sha256"]
    content["sha256"] = _checksum(content)
    assert Record.from_text(json.dumps(content)) == record()


def test_relative_time_is_against_the_default_of_the_same_rounds() -> None:
    assert record(median_us=8.0, default_us=10.0).relative == pytest.approx(0.8)
    assert record(median_us=None).relative == float("inf")


@pytest.mark.parametrize("name", ["config", "outcome", "median_us", "device", "problem"])
def test_an_edited_record_is_refused(name: str) -> None:
    content = json.loads(record().to_text())
    content[name] = "chosen" if name == "outcome" else 1.0
    with pytest.raises(RecordError, match="its checksum does not fit"):
        Record.from_text(json.dumps(content))


def test_every_cut_of_a_record_is_refused() -> None:
    text = record().to_text()
    for end in range(len(text) - 2):
        with pytest.raises(RecordError):
            Record.from_text(text[:end])


@settings(max_examples=200)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_but_a_record_are_read(content: bytes) -> None:
    with pytest.raises(RecordError):
        Record.from_text(content)


@settings(max_examples=200)
@given(name=st.sampled_from([*json.loads(record().to_text())]), value=JSON)
def test_a_field_of_any_value_is_read_or_refused(name: str, value: object) -> None:
    """With a fitting checksum, as another version might write it."""
    content = json.loads(record().to_text())
    content[name] = value
    content.pop("sha256", None)
    content["sha256"] = _checksum(content)
    try:
        read = Record.from_text(json.dumps(content))
    except RecordError:
        return
    assert Record.from_text(read.to_text()) == read


@settings(max_examples=200)
@given(JSON)
def test_no_value_but_a_problem_is_read(value: object) -> None:
    with pytest.raises(RecordError):
        Problem.from_json(value)


def test_problems_survive_their_json() -> None:
    for written in (problem(), problem(512, 0.5, block=(64, 32), shapes=((7, 9), (9, 7)))):
        assert Problem.from_json(json.loads(json.dumps(written.to_json()))) == written


@settings(max_examples=300)
@given(st.text(max_size=60) | st.text("CpuConfig(token_tile=12, vectors)[]'-e9_\n", max_size=60))
def test_no_text_but_a_config_is_parsed(text: str) -> None:
    try:
        config = parse(text)
    except RecordError:
        return
    assert parse(repr(config)) == config


@pytest.mark.parametrize(
    "text",
    ["CpuConfig(token_tile=open('x'))", "CpuConfig(12, 2, 3)", "Other(a=1)", "CpuConfig(token_tile='a', vectors=1)",
     "CpuConfig(tile=1)", "CpuConfig(token_tile=True, vectors=1, panel_bytes=2)", "(" * 5000],
)  # fmt: skip
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="expected a config such as CpuConfig"):
        parse(text)


def test_a_config_without_fields_that_it_needs_names_them() -> None:
    start = r"^expected a config such as CpuConfig\(token_tile=12, vectors=2, panel_bytes=1048576\), got "
    with pytest.raises(
        RecordError, match=start + r"'CpuConfig\(token_tile=8\)': it needs vectors and panel_bytes too$"
    ):
        parse("CpuConfig(token_tile=8)")


def test_configs_survive_their_text() -> None:
    config = replace(CpuConfig(8, 1, 4096), share="rows", threads=1)
    assert parse(repr(config)) == config


def test_buckets() -> None:
    assert [token_bucket(tokens) for tokens in (0, 1, 2, 4, 5, 16, 17, 512, 1024, 1025)] == [
        1, 1, 4, 4, 16, 16, 64, 1024, 1024, 4096
    ]  # fmt: skip
    assert [density_bucket(density) for density in (0.0, 0.001, 0.052, 0.09, 0.46, 1.0)] == [
        0.01,
        0.01,
        0.05,
        0.1,
        0.5,
        1,
    ]
