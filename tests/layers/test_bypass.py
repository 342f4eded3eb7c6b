"""Weights that a module reads itself: found whatever the spelling, and nothing else taken for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.weights_read import weights_read
from tests.models import classes


class Inner(nn.Module):
    """Holds a linear, and reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)


class Reader(nn.Module):
    """Two linears, `proj` and `inner.fc`, and settings."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.inner = Inner()
        self.parts = 1


class Product(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return (self.proj.weight @ x.t()).t()


class Keyword(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, weight=self.proj.weight.data)


class Below(Reader):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.fc.weight.to(x.dtype)
        return F.linear(x, weight)


def twice(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A decorator as libraries put it around `forward`."""

    @functools.wraps(method)
    def run(*args: Any) -> Tensor:
        return 2 * method(*args)

    return run


class Helper(Reader):
    @twice
    def forward(self, x: Tensor) -> Tensor:
        return self.helped(x)

    def helped(self, x: Tensor) -> Tensor:
        return x @ torch.cat([self.proj.weight, self.inner.fc.weight])[:8]


class Branches(Reader):
    def forward(self, x: Tensor, is_slow: bool = False) -> Tensor:
        if is_slow:
            return x @ self.proj.weight
        y: Tensor = self.proj(x)
        return y if self.parts == 1 else y @ self.inner.fc.weight


class Training(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proj.weight) if self.training else torch.as_tensor(self.proj(x))


class Harmless(Reader):
    """Looks at weights, fills and returns them, and reads one where its settings never go."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.proj.weight.dtype or not isinstance(self.proj.weight, Tensor):
            x = x.to(self.proj.weight.device, self.proj.weight.dtype)
        if self.parts > 1:
            return F.linear(x, self.proj.weight[: self.parts])
        if self.weight() is not self.proj.weight:
            nn.init.ones_(self.proj.weight)
            self.proj.weight.data.zero_()
            self.proj.weight = nn.Parameter(x)
        y: Tensor = self.proj(x)
        return y

    def weight(self) -> Tensor:
        return self.proj.weight

    def never_called(self) -> Tensor:
        return 2 * self.inner.fc.weight


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Product, {"proj"}),
        (Keyword, {"proj"}),
        (Below, {"inner.fc"}),
        (Helper, {"proj", "inner.fc"}),
        (Branches, {"proj"}),
        (Training, {"proj"}),
        (Harmless, set()),
        (Reader, set()),
    ],
)
def test_reads_of_every_spelling(kind: type[Reader], names: set[str]) -> None:
    assert weights_read(kind()) == names


def test_settings_decide_which_branch_counts() -> None:
    harmless, branches = Harmless(), Branches()
    harmless.parts = branches.parts = 2
    assert weights_read(harmless) == {"proj"}
    assert weights_read(branches) == {"proj", "inner.fc"}


def test_code_without_source_is_passed_over() -> None:
    places: dict[str, Any] = {"Reader": Reader}
    exec("class Typed(Reader):\n    def forward(self, x): return x @ self.proj.weight", places)
    assert weights_read(places["Typed"]()) == set()


def test_such_layers_stay_dense_and_others_do_not(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Product(), Branches()), torch.randn(3, 8)
    before = model(x)
    caplog.set_level("INFO", "blast_compile")
    blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.0, targets="all"))
    assert classes(model) == {
        "0.proj": "Linear", "0.inner.fc": "SparseLinear", "1.proj": "Linear", "1.inner.fc": "SparseLinear",
    }  # fmt: skip
    assert "0.proj stays dense: Product reads its weight without calling it" in caplog.messages
    assert torch.equal(model(x), before)


def test_models_of_transformers() -> None:
    from transformers import BloomConfig, JambaConfig, T5Config
    from transformers.models.bloom.modeling_bloom import BloomMLP
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer
    from transformers.models.t5.modeling_t5 import T5DenseActDense
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    jamba = JambaConfig(hidden_size=16, mamba_d_state=4, mamba_dt_rank=4)
    assert "dt_proj" in weights_read(JambaMambaMixer(jamba, 0))
    assert weights_read(WavLMAttention(8, 2)) == {"k_proj", "out_proj", "q_proj", "v_proj"}
    assert weights_read(T5DenseActDense(T5Config(d_model=8, d_ff=16))) == set()  # it looks at a dtype
    bloom = BloomConfig(hidden_size=8, n_head=2)
    assert weights_read(BloomMLP(bloom)) == set()
    bloom.pretraining_tp, bloom.slow_but_exact = 2, True
    assert weights_read(BloomMLP(bloom)) == {"dense_4h_to_h"}
