"""Programs that passes once rewrote into other programs, and their siblings, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import blast_compile as blast
from blast_compile.masks.mask import BlockMask
from tests.passes.twins import Graphs, Seen, compare


class Net(nn.Module):
    """gate, up: 8 -> 12. down: 12 -> 8. both: 8 -> 24. Biases are zero, and every other row of blocks is empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down, self.both = (nn.Linear(*sizes) for sizes in ((8, 12), (8, 12), (12, 8), (8, 24)))
        self.body: Any = None
        up = BlockMask(torch.tensor([[True, True], [False, False], [True, True]]), (12, 8), (4, 4))
        nn.init.zeros_(self.up.bias)
        blast.sparsify_(self, blast.BlockSparse(block=4, sparsity=0.5, targets="all"), masks={"up": up})

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


@dataclass(frozen=True)
class Fault:
    """body: of the network. shape: of its input. grad: with gradients. dynamic: compiled for more sizes."""

    body: Callable[..., Any]
    grad: bool = False
    shape: tuple[int, ...] = (2, 3, 8)
    dynamic: bool | None = None


def check(fault: Fault, net: Net, graphs: Graphs | None = None) -> Seen:
    """Asserts that the program stays what it is."""
    net.body = fault.body
    x = torch.randn(fault.shape, generator=torch.Generator().manual_seed(1))
    return compare(net, [x], grad=fault.grad, dynamic=fault.dynamic, graphs=graphs)


def _copy_is_written(m: Any, x: Tensor) -> Any:
    h = x.transpose(0, 1).reshape(-1, 8).view(x.shape[1], x.shape[0], 8)
    h += 1.0
    return m.down(F.relu(m.up(h.transpose(0, 1)))) + x


def _copy_is_written_far_behind(m: Any, x: Tensor) -> Any:
    h = x.transpose(0, 1).reshape(-1, 8).view(x.shape[1], x.shape[0], 8)
    y = m.down(F.relu(m.up(x)))
    x.mul_(2.0)
    return y, h.sum()


def _expanded_is_written(m: Any, x: Tensor) -> Any:
    h = x[:1].expand(2, 3, 8).reshape(6, 8).view(2, 3, 8)
    h += 1.0
    return m.up(h).sum() + x


def _copy_is_returned(m: Any, x: Tensor) -> Any:
    return m.up(x).sum(), x.transpose(0, 1).reshape(-1, 8).view(x.shape[1], x.shape[0], 8)


def _old_copy_serves(m: Any, x: Tensor) -> Any:
    t = x.transpose(0, 1)
    c = t.reshape(-1, 8)
    c.mul_(2)
    return F.relu(m.up(t).view(-1, 12)) + c.sum() * 0


def _old_copy_of_another_mode_serves(m: Any, x: Tensor) -> Any:
    t = x * m.down.bias
    with torch.no_grad():
        c = t.view(-1, 8)
    return F.relu(m.up(t).view(-1, 12)).sum() + c.sum()


def _old_copy_is_written_behind(m: Any, x: Tensor) -> Any:
    t = (x * 2.0).transpose(0, 1)
    c = t.reshape(-1, 8)
    y = F.relu(m.up(t).view(-1, 12))
    c.mul_(2)
    return y, c


def _odd_tokens(m: Any, x: Tensor) -> Any:
    a, b = m.both(x).reshape(2, *x.shape[:-1], 12).unbind(0)
    return F.silu(a) * b


def _other_rows(m: Any, x: Tensor) -> Any:
    y = m.both(x).reshape(1, 6, 12)
    return F.silu(y[:, 0:3]) * y[:, 1:4]


def _view_under_no_grad_of_what_is_written(m: Any, x: Tensor) -> Any:
    y = m.down(F.relu(m.up(x)))
    with torch.no_grad():
        t = y.view(2, 3, 8)
        h = (F.relu(m.gate(t)) * m.up(t)).view(2, 3, 12)
        y.mul_(1.5)
        return m.down(h)


def _in_inference_mode(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def body(m: Any, x: Tensor) -> Any:
        y = m.down(F.relu(m.up(x)))
        with torch.inference_mode():
            return change(y)

    return body


def _under_no_grad(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def body(m: Any, x: Tensor) -> Any:
        y = m.up(x)
        with torch.no_grad():
            t = change(y)
        return m.down(F.relu(t)) + m.down(m.gate(x))

    return body


def _view_of_written_under_no_grad(m: Any, x: Tensor) -> Any:
    y = m.up(x)
    with torch.no_grad():
        t = y.relu_().view(y.shape)
    return m.down(t) + m.down(m.gate(x))


def _graph_inside_under_no_grad(m: Any, x: Tensor) -> Any:
    def part(x: Tensor) -> Tensor:
        y = m.up(x)
        with torch.no_grad():
            t = y.view(y.shape)
        z: Tensor = m.down(F.relu(t)) + m.down(m.gate(x))
        return z

    return checkpoint(part, x, use_reentrant=False)


def _graph_inside_entered_under_no_grad(m: Any, x: Tensor) -> Any:
    y = m.up(x)

    def part(y: Tensor) -> Tensor:
        return y.view(y.shape)

    with torch.no_grad():
        t = checkpoint(part, y, use_reentrant=False)
    return m.down(F.relu(t)) + m.down(m.gate(x))


def _saved_and_written(m: Any, x: Tensor) -> Any:
    y = m.up(x)
    z = 0.5 * y * (1.0 + torch.erf(y / 2.0**0.5))
    y.add_(1.0)
    return m.down(z), y


def _copy_of_saved_is_written(m: Any, x: Tensor) -> Any:
    t = F.relu(x * m.down.bias).clone()
    t[0] = 1.0
    return m.up(t)


def _view_is_reshaped(m: Any, x: Tensor) -> Any:
    y = m.up(x)
    t = y.view(3, 3, 12)
    t.transpose_(0, 1)  # of the same shape
    return t.sin(), y.cos()


def _between(write: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def body(m: Any, x: Tensor) -> Any:
        y = m.up(x)
        write(x)
        return m.down(F.relu(y))

    return body


def _autocast_between(m: Any, x: Tensor) -> Any:
    y = F.relu(m.up(x))
    with torch.autocast("cpu", torch.bfloat16):
        return m.down(y)


def _no_grad_between(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        y = F.relu(m.up(x))
    return m.down(y)


def _redundant_no_grad(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        with torch.no_grad():
            y = m.up(x)
        t = y.relu_()
        u = m.gate(x)
    with torch.no_grad():
        t = m.down(t * u).clone()
    return t + m.down(m.gate(x))


def _enabled_inside(m: Any, x: Tensor) -> Any:
    with torch.enable_grad():
        y = m.up(x)
        with torch.no_grad():
            t = y.view(y.shape)
        z = m.down(F.relu(t)) + m.down(m.gate(x))
    return z, y.requires_grad, t.requires_grad


FAULTS: dict[str, Fault] = {
    "a copy of the input is written to": Fault(_copy_is_written),
    "the source of a copy is written to, far behind": Fault(_copy_is_written_far_behind),
    "a copy of an expanded tensor is written to": Fault(_expanded_is_written),
    "a copy is returned": Fault(_copy_is_returned),
    "a copy of the input is written to, any size": Fault(_copy_is_written, dynamic=True),
    "an old copy serves": Fault(_old_copy_serves),
    "an old view without a gradient serves": Fault(_old_copy_of_another_mode_serves, grad=True),
    "an old copy is written to behind": Fault(_old_copy_is_written_behind, grad=True),
    "halves of an odd number of tokens": Fault(_odd_tokens, shape=(1, 3, 8)),
    "halves of an odd number of tokens, any size": Fault(_odd_tokens, shape=(1, 3, 8), dynamic=True),
    "rows of a view": Fault(_other_rows, shape=(1, 3, 8)),
    "clone under no_grad": Fault(_under_no_grad(torch.clone), grad=True),
    "clone method under no_grad": Fault(_under_no_grad(lambda y: y.clone()), grad=True),
    "view under no_grad": Fault(_under_no_grad(lambda y: y.view(y.shape)), grad=True),
    "reshape under no_grad": Fault(_under_no_grad(lambda y: y.reshape(2, 3, 12)), grad=True),
    "written in place in inference mode": Fault(_in_inference_mode(lambda y: y.add_(0.25))),
    "relu_ under no_grad": Fault(_under_no_grad(lambda y: y.relu_()), grad=True),
    "inplace flag under no_grad": Fault(_under_no_grad(lambda y: F.relu(y, inplace=True)), grad=True),
    "product in place under no_grad": Fault(_under_no_grad(lambda y: y.mul_(2.0)), grad=True),
    "view of what was written under no_grad": Fault(_view_of_written_under_no_grad, grad=True),
    "view under no_grad of what is written": Fault(_view_under_no_grad_of_what_is_written, grad=True),
    "view under no_grad in a graph inside": Fault(_graph_inside_under_no_grad, grad=True),
    "a graph inside, entered under no_grad": Fault(_graph_inside_entered_under_no_grad, grad=True),
    "redundant no_grad": Fault(_redundant_no_grad, grad=True),
    "gradients switched on inside": Fault(_enabled_inside),
    "clamp": Fault(lambda m, x: m.down(m.up(x).clamp(min=0)), grad=True),
    "clamp_min": Fault(lambda m, x: m.down(torch.clamp_min(m.up(x), 0.0)), grad=True),
    "relu of the other sign": Fault(lambda m, x: (lambda y: m.down(y + F.relu(-y)))(m.up(x)), grad=True),
    "relu by a root": Fault(lambda m, x: (lambda y: m.down(0.5 * (y + (y * y) ** 0.5)))(m.up(x)), grad=True),
    "saved for the backward pass and written to": Fault(_saved_and_written, grad=True),
    "a copy of what is saved is written to": Fault(_copy_of_saved_is_written, grad=True),
    "a view changes its strides": Fault(_view_is_reshaped, shape=(3, 3, 8)),
    "__iadd__": Fault(_between(lambda x: x.__iadd__(1.0))),
    "add_": Fault(_between(lambda x: x.add_(1.0))),
    "write to a view": Fault(_between(lambda x: x.view(-1, 8)[1:].mul_(3.0))),
    "max_norm": Fault(_between(lambda x: F.embedding(torch.arange(3), x[0], max_norm=0.1))),
    "embedding_bag": Fault(_between(lambda x: F.embedding_bag(torch.arange(3)[None], x[0], max_norm=0.1))),
    "batch_norm": Fault(_between(lambda x: F.batch_norm(torch.ones(6, 8), x[0, 0], torch.ones(8), training=True))),
    "instance_norm": Fault(_between(lambda x: F.instance_norm(x[None, 0], x[0, :, 0], torch.ones(3), momentum=0.9))),
    "autocast between": Fault(_autocast_between),
    "no_grad between": Fault(_no_grad_between, grad=True),
}
