"""What calibration collects: in which order, of which runs, and in which forms data may come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blast_compile.base.errors import LayerError, OptionsError
from blast_compile.learning.pruning.calibration import Calibration
from blast_compile.learning.pruning.regions import evaluating


class Branches(nn.Module):
    """Modules in another order than they run; `gate` and `up` share an input, `odd` runs on odd lengths alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.odd, self.up, self.gate = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.num_heads_run = 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        hidden = self.drop(self.gate(x) * self.up(x)) * scale
        if len(x) % 2:
            hidden = self.odd(hidden)
        for _ in range(2):
            hidden = self.down(hidden)
        self.num_heads_run += 1
        y: Tensor = self.head(hidden)
        return y


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def nothing() -> None:
    pass


def surveyed(data: Iterable[Any]) -> tuple[Branches, Calibration]:
    model = Branches().eval()
    calibration = Calibration(model, data, linears(model))
    calibration.survey(nothing)
    return model, calibration


def test_groups_are_in_the_order_of_runs_whichever_way_batches_take() -> None:
    _, calibration = surveyed([torch.randn(4, 6), torch.randn(3, 6)])
    assert calibration.groups() == [["gate", "up"], ["odd"], ["down"], ["head"]]


def test_an_input_that_was_changed_in_place_is_another_one() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x) + self.second(x.mul_(2))
            return y

    model = InPlace()
    calibration = Calibration(model, [torch.randn(4, 6)], linears(model))
    calibration.survey(nothing)
    assert calibration.groups() == [["first"], ["second"]]


def test_a_gram_is_of_all_rows_and_calls_and_of_the_model_as_it_is_now() -> None:
    data = [torch.randn(3, 6), torch.randn(2, 7, 6)]
    model, calibration = surveyed(data)
    model.gate.weight.data.zero_()
    rows = [(model.gate(x) * model.up(x)).flatten(0, -2) for x in data]
    rows[0] = model.odd(rows[0])
    expected = torch.cat([*rows, *(model.down(x) for x in rows)]).detach().double()
    gram = calibration.gram(["down"], nothing)
    # Products are in fp32, over tens of rows.
    torch.testing.assert_close(gram.values, expected.T @ expected, rtol=1e-5, atol=1e-6)
    assert (gram.values.dtype, gram.num_tokens) == (torch.float64, 34)


def test_runs_end_at_the_group_and_leave_no_hooks() -> None:
    model, calibration = surveyed([torch.randn(3, 6)] * 3)
    model.num_heads_run = 0
    calibration.gram(["down"], nothing)
    assert model.num_heads_run == 0
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_squares_are_summed_over_all_rows() -> None:
    data = [torch.randn(4, 6), torch.randn(2, 3, 6)]
    model = Branches().eval()
    layers = {"up": model.up}
    squares = Calibration(model, data, layers).survey(nothing)["up"].squares
    expected = torch.cat([x.flatten(0, -2) for x in data]).double().square().sum(0)
    torch.testing.assert_close(squares, expected, rtol=1e-6, atol=0.0)


X = torch.arange(18.0).view(3, 6)


@pytest.mark.parametrize(
    "data",
    [
        lambda: [X],
        lambda: ((X,),),
        lambda: [[X]],
        lambda: [{"x": X, "scale": 1.0}],
        lambda: (x for x in [X]),
        lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=3),
    ],
    ids=["tensor", "tuple", "list", "kwargs", "generator", "loader"],
)
def test_data_come_in_every_form(data: Callable[[], Any]) -> None:
    _, calibration = surveyed(data())
    torch.testing.assert_close(calibration.gram(["gate", "up"], nothing).values, (X.T @ X).double())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "got no batch"),
        (iter(()), "got no batch"),
        (X, "got a single Tensor; put it into a list"),
        ({"x": X}, "got a single dict"),
        (3, "got a single int"),
        (["text"], "got a str"),
    ],
)
def test_data_in_no_form_are_refused(data: Any, message: str) -> None:
    model = Branches()
    with pytest.raises(OptionsError, match=message):
        Calibration(model, data, linears(model))


def test_padding_is_left_out() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.flat, self.pooled = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            assert attention_mask.shape == x.shape[:2]
            y: Tensor = self.pooled(self.flat(self.whole(x).flatten(0, 1)).view(x.shape).sum(1))
            return y

    model, x, mask = Padded(), torch.randn(2, 3, 6), torch.tensor([[1, 1, 0], [0, 1, 1]])
    calibration = Calibration(model, [{"x": x, "attention_mask": mask}], linears(model))
    seen = calibration.survey(nothing)
    assert [layer.num_rows for layer in seen.values()] == [4, 4, 2]
    real = x[mask.bool()]
    # fp32: sums in another order
    torch.testing.assert_close(calibration.gram(["whole"], nothing).values, (real.T @ real).double())
    assert calibration.gram(["flat"], nothing).num_tokens == 4
    assert seen["whole"].squares is not None
    torch.testing.assert_close(seen["whole"].squares, real.square().sum(0).double())


def test_layers_that_no_data_reach_are_named() -> None:
    with pytest.raises(LayerError, match="reaches every layer, got none for 'odd'"):
        surveyed([X[:2]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(LayerError, match="expected finite inputs of 'gate', got NaN or infinity"):
        surveyed([torch.full((3, 6), bad)])


def test_an_expert_that_is_reached_no_longer_counts_its_inputs_alike() -> None:
    model, calibration = surveyed([torch.randn(3, 6)])
    model.register_forward_pre_hook(lambda _, args: (torch.cat([*args, *args]),))  # an even length
    gram = calibration.gram(["odd"], nothing)
    assert gram.num_tokens == 0
    assert torch.equal(gram.values, torch.eye(6, dtype=torch.float64))


def test_evaluating_gives_each_module_its_mode_back() -> None:
    model = Branches().train()
    model.gate.eval()

    def fail() -> None:
        with evaluating(model):
            assert not model.drop.training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in (model, model.drop, model.gate)] == [True, True, False]


def test_runs_draw_the_same_numbers_and_leave_the_random_state() -> None:
    model = Branches().train()
    calibration = Calibration(model, [torch.ones(3, 6)], linears(model))
    calibration.survey(nothing)
    state = torch.get_rng_state()
    first, second = (calibration.gram(["down"], nothing).values for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
