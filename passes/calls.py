"""What a call does to memory: a closed list. A call that is not on it may do anything.

A name on a list stands for the method of that name, and for what `operator`, `torch`, `torch.nn.functional`,
`torch.linalg` and `torch.ops.aten` call so. Lists of what is dangerous never end: a batch norm in training writes to
its statistics, which shows in no schema and bumps no version, and an embedding with `max_norm` writes to its weight.
"""

from __future__ import annotations

import builtins
import math
import operator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Node

Effect = Literal["fresh", "view", "write", "mode", "unknown"]
"""fresh: new memory, nothing written. view: nothing written, but the result may be an argument or share its memory.
write: to the values of the first argument, which is the result too. mode: changes how torch computes, until the next.
unknown: any of it, to all arguments."""

_FRESH = """
abs absolute acos add addbmm addcdiv addcmul addmm addmv aminmax all allclose amax amin and_ any arange argmax argmin
argsort asin atan atan2 avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d baddbmm bilinear
binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and bitwise_not bitwise_or bitwise_xor bmm
bucketize cat cdist ceil celu clamp clamp_max clamp_min clip clone concat concatenate constant_pad_nd conv1d conv2d
conv3d conv_transpose1d conv_transpose2d convolution cos cosh cosine_similarity count_nonzero cross cross_entropy
cummax cumprod cumsum deg2rad dim div divide dot dstack elu empty empty_like eq equal erf erfc erfinv exp exp2 expm1 eye
fill flip floor floor_divide floordiv fmod frac full full_like gather ge gelu glu greater greater_equal grid_sample
group_norm gt hardshrink hardsigmoid hardswish hardtanh heaviside histc hstack hypot index_add index_copy index_fill
index_select interpolate invert isclose isfinite isin isinf isnan is_contiguous is_floating_point is_same_size item
kthvalue l1_loss layer_norm le leaky_relu lerp less less_equal linear linspace log log10 log1p log2 log_softmax
logaddexp logcumsumexp logical_and logical_not logical_or logical_xor logit logsigmoid logsumexp lshift lt masked_fill
masked_scatter masked_select matmul max max_pool1d max_pool2d max_pool3d maximum mean median min minimum mish mm mod
mse_loss mul multinomial multiply mv nan_to_num nanmean native_layer_norm ne neg negative new_empty new_full new_ones
new_tensor new_zeros nll_loss nonzero norm normalize not_ not_equal numel one_hot ones ones_like or_ outer pow prelu
prod quantile rad2deg rand rand_like randint randn randn_like reciprocal relu relu6 remainder repeat repeat_interleave
rms_norm roll round rshift rsqrt rsub scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted selu
sgn sigmoid sign silu sin sinc sinh size smooth_l1_loss softmax softmin softplus softshrink softsign sort sqrt square
stack std std_mean storage_offset stride sub subtract sum sym_float sym_int sym_ite sym_max sym_min sym_not sym_size
sym_sqrt take take_along_dim tan tanh tanhshrink tensor tensordot threshold tolist topk trace tril tril_indices triu
triu_indices true_divide truediv trunc truth unique unique_consecutive var var_mean vector_norm vstack where xlogy xor
zeros zeros_like _check _check_is_size _softmax _log_softmax _to_copy _scaled_dot_product_flash_attention_for_cpu
scalar_tensor argwhere diff embedding block_diag
"""
_REFLECTED = """
__add__ __and__ __eq__ __floordiv__ __ge__ __gt__ __invert__ __le__ __lshift__ __lt__ __matmul__ __mod__ __mul__ __ne__
__neg__ __or__ __pow__ __radd__ __rand__ __rdiv__ __rfloordiv__ __rlshift__ __rmatmul__ __rmod__ __rmul__ __ror__
__rpow__ __rrshift__ __rshift__ __rsub__ __rtruediv__ __rxor__ __sub__ __truediv__ __xor__
"""
_VIEW = """
alias as_strided as_tensor atleast_1d atleast_2d atleast_3d bfloat16 bool broadcast_tensors broadcast_to
byte chunk conj contiguous cpu cuda detach diag diagonal double dropout dropout1d dropout2d dropout3d alpha_dropout
einsum expand expand_as feature_dropout flatten float getitem half hsplit imag int long meshgrid moveaxis
movedim narrow pad permute pixel_shuffle pixel_unshuffle pos positive ravel real reshape reshape_as resolve_conj
resolve_neg rot90 select slice split split_with_sizes squeeze swapaxes swapdims t tensor_split tile to transpose type
type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as view_as_complex view_as_real vsplit
_unsafe_view __getitem__ __pos__ getattr sum_to_size
"""
_WRITE = """
abs_ add_ addcdiv_ addcmul_ addmm_ baddbmm_ bitwise_and_ bitwise_not_ bitwise_or_ bitwise_xor_ ceil_ clamp_ clamp_max_
clamp_min_ copy_ cos_ cumsum_ div_ elu_ eq_ erf_ exp_ fill_ fill_diagonal_ floor_ ge_ gt_ hardtanh_ index_add_
index_copy_ index_fill_ index_put_ le_ leaky_relu_ lerp_ log_ logical_and_ logical_not_ logical_or_ lt_ masked_fill_
masked_scatter_ mul_ nan_to_num_ ne_ neg_ pow_ reciprocal_ relu_ remainder_ round_ rsqrt_ scatter_ scatter_add_ sigmoid_
sign_ silu_ sin_ sqrt_ square_ sub_ tanh_ tril_ triu_ true_divide_ trunc_ xlogy_ zero_ setitem __setitem__
iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift
__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __imatmul__ __iand__ __ior__ __ixor__
__ilshift__ __irshift__
"""
_MODE = "_set_grad_enabled _enter_autocast _exit_autocast _enter_inference_mode _exit_inference_mode"
_WITH_GRAPHS = {"tag_activation_checkpoint", "wrap", "invoke_subgraph", "cond", "flex_attention"}
# Those of torch that change how it computes are private: _vmap_increment_nesting, _saved_tensors_hooks_disable, ...
_MODE_PREFIXES = ("_enter_", "_exit_", "_set_", "set_", "_vmap_", "_functorch", "_saved_tensors_hooks", "_grad_")
_PLACES: tuple[Any, ...] = (builtins, math, operator, torch, F, torch.linalg, torch.ops.aten)

METHODS: dict[str, Effect] = {
    **dict.fromkeys((_FRESH + _REFLECTED).split(), "fresh"),
    **dict.fromkeys(_VIEW.split(), "view"),
    **dict.fromkeys(_WRITE.split(), "write"),
}
"""What a method of a tensor does, by name."""
FUNCTIONS: dict[object, Effect] = {
    called: effect
    for name, effect in METHODS.items()
    for place in _PLACES
    if callable(called := getattr(place, name, None))
}
"""What a function, or an operator whatever its overload, does."""
INPLACE: dict[object, int] = {
    **dict.fromkeys((F.relu, F.silu, F.selu, F.relu6, F.hardswish, F.hardsigmoid, F.mish), 1),
    **dict.fromkeys((F.elu, F.celu, F.leaky_relu), 2),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.hardtanh, F.threshold), 3),
}
"""At which argument functions take `inplace`, unless by name."""
MAX_NORM = 3
"""At which argument `F.embedding` takes `max_norm`, for which it writes to its weight."""


def effect_of(node: Node) -> Effect:
    """What a node does to memory, as far as its target and arguments tell; of graphs in it, nothing is asked here."""
    if node.op in ("placeholder", "get_attr", "output"):
        return "fresh"
    if node.op == "call_method":
        effect = METHODS.get(str(node.target), "unknown")
    elif node.op == "call_function":
        effect = FUNCTIONS.get(getattr(node.target, "overloadpacket", node.target)) or _of_private(node.target)
    else:
        return "unknown"
    if effect in ("fresh", "view") and (node.kwargs or node.target in _WITH_OPTIONS):
        return _by_options(node, effect)
    return effect


def writes_in_place(node: Node) -> bool:
    """Whether a call such as `F.relu(x, True)` asks for its `inplace` form."""
    return bool(_argument(node, INPLACE.get(node.target), "inplace"))


def may_change_mode(node: Node) -> bool:
    """Whether a call of unknown effect may change how torch computes, and not memory alone."""
    return getattr(node.target, "__name__", "").startswith(_MODE_PREFIXES)


def runs_graphs(node: Node) -> bool:
    """Whether a call runs graphs in the mode in which it stands itself, and does nothing but what they do."""
    return isinstance(node.target, HigherOrderOperator) and node.target.__name__ in _WITH_GRAPHS


_WITH_OPTIONS = {*INPLACE, F.embedding}


def _of_private(target: Any) -> Effect:
    if isinstance(target, OpOverload | OpOverloadPacket):
        return "fresh" if str(target).startswith("blast.") else "unknown"
    return "mode" if getattr(target, "__name__", "") in _MODE.split() else "unknown"


def _by_options(node: Node, effect: Effect) -> Effect:
    if node.kwargs.get("out") is not None:
        return "unknown"
    if node.target is F.embedding and _argument(node, MAX_NORM, "max_norm") is not None:
        return "unknown"
    return "write" if writes_in_place(node) else effect


def _argument(node: Node, position: int | None, name: str) -> Any:
    if position is not None and position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name)
