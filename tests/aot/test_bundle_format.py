"""The manifest of a bundle: what is written is read, and anything else is refused in words."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels.bundles import Artifact, Contents, LauncherFile, Skipped
from blast_compile.kernels.bundles import format as manifests
from blast_compile.kernels.bundles.format import MANIFEST, Fingerprint

WORDS = st.text(max_size=8)
SPECS = st.builds(
    Spec,
    st.sampled_from(["linear", "mlp", "gated_mlp", "weight_grad"]),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["float32", "bfloat16"]),
    st.tuples(st.integers(1, 256), st.integers(1, 256)),
    st.lists(st.builds(Epilogue, st.sampled_from(["relu", "silu"]), st.booleans(), st.booleans()), max_size=2).map(
        tuple
    ),
    st.sampled_from(["masked", "packed"]),
    WORDS,
)
FACTS = st.dictionaries(WORDS, st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), WORDS))
FILES = {name: Fingerprint.of(name.encode()) for name in ("a.so", "b/c.cubin")}
NAMES = st.sampled_from(sorted(FILES))
OPTIONAL = st.one_of(NAMES, st.just(""))
ARTIFACTS = st.builds(
    Artifact,
    SPECS,
    WORDS,
    WORDS,
    st.lists(st.integers()).map(tuple),
    NAMES,
    NAMES,
    OPTIONAL,
    OPTIONAL,
    FACTS,
)


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


CONTENTS = st.builds(
    Contents, WORDS, WORDS, st.dictionaries(WORDS, WORDS, max_size=2), tuples(WORDS), WORDS, tuples(ARTIFACTS),
    tuples(st.builds(LauncherFile, WORDS, WORDS, NAMES)), tuples(st.builds(Skipped, WORDS, WORDS, WORDS)),
)  # fmt: skip


@given(CONTENTS)
def test_what_is_written_is_read(contents: Contents) -> None:
    assert manifests.read(manifests.write(contents, FILES)) == (contents, FILES)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


@given(CONTENTS, st.data())
def test_a_manifest_with_anything_in_any_place_is_read_or_refused(contents: Contents, data: st.DataObject) -> None:
    """Signed again, so that the hash of the manifest does not hide what lies behind it."""
    manifest = json.loads(manifests.write(contents, FILES))
    del manifest["sha256"]
    place: Any = manifest
    while True:
        keys = range(len(place)) if isinstance(place, list) else sorted(place)
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    else:
        del place[key]
    with suppress(ValueError):  # and nothing else
        manifests.read(manifests._text_of(manifest))


@given(st.one_of(st.binary(), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_refused_in_words(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of many kinds, all of them wrapped by Bundle.open
        manifests.read(content)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a//b", MANIFEST, "a\0b"])
def test_paths_stay_inside(name: str) -> None:
    contents = Contents("", "", {}, (), "", (), (), ())
    with pytest.raises(ValueError, match="expected plain paths inside the bundle|lists itself"):
        manifests.read(manifests.write(contents, {name: Fingerprint("", 0)}))


def test_nested_without_end() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        manifests.read(b"[" * 200_000)
