"""Arithmetic, traffic and workspace of ATen operators, by formulas over the shapes of a traced call.

The cost classes are those that `runtime.calibrate` measures (see `planner.costs_onnx`). A view is no operator and
costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import fx

from ..costs import OperatorCost
from .costs_products import attention, bilinear, convolution, einsum, encoder, grouped, product, recurrent
from .traced import schema_of
from .views import covered, dtype_name, is_row_major, known_shape


@dataclass(frozen=True, slots=True)
class Call:
    """A traced call: `name` without namespace, overload and trailing underscore, arguments by their names in the
    schema, and the tensors among arguments and results. `in_place` says that the first argument is changed."""

    name: str
    in_place: bool
    arguments: dict[str, Any]
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]

    @property
    def in_nbytes(self) -> int:
        """Bytes of all arguments, each tensor once."""
        return sum(tensor_nbytes(v) for v in {id(v): v for v in self.inputs}.values())

    @property
    def out_nbytes(self) -> int:
        """Bytes of all results."""
        return sum(tensor_nbytes(v) for v in self.outputs)

    @property
    def out_elements(self) -> int:
        """Elements of all results."""
        return sum(elements(v) for v in self.outputs)

    def tensor(self, name: str) -> torch.Tensor | None:
        """The tensor given for an argument, None where there is none."""
        found = self.arguments.get(name)
        return found if isinstance(found, torch.Tensor) else None

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of the tensor argument number `index`, () where it has none or is absent."""
        return (known_shape(self.inputs[index]) or ()) if index < len(self.inputs) else ()


@dataclass(frozen=True, slots=True)
class Work:
    """Class, operations and bytes of a call; None stands for the bytes of all arguments and results."""

    cost_class: str
    flops: int = 0
    moved_nbytes: int | None = None
    workspace_nbytes: int = 0


def torch_cost(node: fx.Node) -> OperatorCost:
    """Cost of a traced call. A multiply-add is two operations; operators without a formula are of class 'other' and
    cost their bytes. What has a shape that depends on data counts nothing.

    The workspace is what the CPU kernel allocates beside its result, where it is worth speaking of.
    """
    call = call_of(node)
    done = _RULES.get(call.name, _other)(call)
    return OperatorCost(
        cost_class=done.cost_class,
        dtype=_arithmetic(call),
        flops=done.flops,
        moved_nbytes=call.in_nbytes + call.out_nbytes if done.moved_nbytes is None else done.moved_nbytes,
        workspace_nbytes=done.workspace_nbytes,
    )


def call_of(node: fx.Node) -> Call:
    """The call that `node` makes, with the traced values for its nodes."""
    target = node.target
    args, kwargs = _traced(node.args), _traced(dict(node.kwargs))
    arguments: dict[str, Any] = dict(kwargs)
    name = getattr(target, "__name__", str(target))
    in_place = False
    schema = schema_of(node)
    if schema is not None:
        arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        arguments |= dict(zip((a.name for a in schema.arguments), args, strict=False)) | dict(kwargs)
        name = schema.name.partition("::")[2]
        in_place = bool(schema.arguments) and bool(a := schema.arguments[0].alias_info) and a.is_write
        name = name.rstrip("_") if in_place else name
    inputs, outputs = tuple(_tensors((args, kwargs))), tuple(_tensors(node.meta.get("val")))
    return Call(name, in_place, arguments, inputs, outputs)


def elements(value: torch.Tensor) -> int:
    """Number of elements, 0 where it depends on data."""
    shape = known_shape(value)
    return 0 if shape is None else prod(shape)


def tensor_nbytes(value: torch.Tensor) -> int:
    """Bytes that a kernel reads of a tensor: of an expanded one, what is there."""
    if known_shape(value) is None:
        return 0
    return min(elements(value) * value.element_size(), covered(value)[1])


def _traced(arg: Any) -> Any:
    if isinstance(arg, fx.Node):
        return arg.meta.get("val")
    if isinstance(arg, (tuple, list)):
        return tuple(_traced(a) for a in cast("tuple[object, ...]", arg))
    if isinstance(arg, Mapping):
        return {k: _traced(v) for k, v in cast("Mapping[str, object]", arg).items()}
    return arg


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in cast("tuple[object, ...]", value):
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(tuple(cast("dict[str, object]", value).values()))


def _arithmetic(call: Call) -> str:
    """The dtype computed in: that of the first floating-point argument, or else of the first tensor; signed."""
    known = [*call.inputs, *call.outputs]
    floating = [v for v in known if v.is_floating_point()]
    dtype = dtype_name((floating or known)[0].dtype) if known else "float32"
    return "int8" if dtype == "uint8" else dtype


def _other(call: Call) -> Work:
    return Work("other", call.out_elements)


def _simple(cost_class: str, per_element: int = 1) -> Callable[[Call], Work]:
    return lambda call: Work(cost_class, per_element * call.out_elements)


def _power(call: Call) -> Work:
    exponent = call.arguments.get("exponent")
    cheap = isinstance(exponent, (int, float)) and exponent in (1, 2, 3, 0.5, -1, -2)
    return Work("elementwise" if cheap else "transcendental", (1 if cheap else 10) * call.out_elements)


def _reduction(call: Call) -> Work:
    return Work("reduce", elements(call.inputs[0]) if call.inputs else 0)


def _root_mean_square(call: Call) -> Work:
    """On the CPU several operators, with one value of the input's size between them."""
    return Work("normalise", 8 * call.out_elements, None, call.out_nbytes)


def _softmax(call: Call) -> Work:
    rank = len(call.shape(0))
    last = call.arguments.get("dim", -1) in (-1, rank - 1)
    return Work("softmax" if last else "softmax_outer", 5 * call.out_elements)


def _copied(call: Call) -> Work:
    """Reads no more than it writes; a copy out of another order of dimensions is a transposition."""
    source = call.inputs[0] if call.inputs else None
    straight = source is None or known_shape(source) is None or is_row_major(source.shape, source.stride())
    return Work("copy" if straight else "transpose", 0, 2 * call.out_nbytes)


def _filled(call: Call) -> Work:
    return Work("copy", 0, call.out_nbytes)


def _allocated(call: Call) -> Work:
    return Work("copy", 0, 0)


def _picked(call: Call) -> Work:
    """Only the rows that are asked for are read."""
    indices = sum(tensor_nbytes(v) for v in call.inputs if not v.is_floating_point() and v is not call.inputs[0])
    return Work("gather", 0, 2 * call.out_nbytes + indices)


def _put(call: Call) -> Work:
    """Written in place, only what is given is moved; else the whole is copied first."""
    if call.in_place:
        given = sum(tensor_nbytes(v) for v in call.inputs[1:])
        return Work("scatter", 0, 2 * given)
    return Work("scatter")


def _pool(call: Call) -> Work:
    kernel = call.arguments.get("kernel_size") or (1,)
    sides = (kernel,) if isinstance(kernel, int) else tuple(cast("tuple[int, ...]", kernel))
    rank = int(call.name[-2]) if call.name[-1] == "d" and call.name[-2].isdigit() else len(sides)
    window = sides[0] ** rank if len(sides) == 1 else prod(sides)
    return Work("pool_nchw", elements(call.outputs[0]) * window)


def _of(rule: Callable[[Call], tuple[str, int, int | None, int]]) -> Callable[[Call], Work]:
    return lambda call: Work(*rule(call))


def _names(text: str, rule: Callable[[Call], Work]) -> dict[str, Callable[[Call], Work]]:
    return dict.fromkeys(text.split(), rule)


_RULES: dict[str, Callable[[Call], Work]] = {
    **_names("linear addmm mm bmm baddbmm addbmm matmul mv addmv dot vdot inner outer ger addr", _of(product)),
    **_names("_scaled_mm _int_mm chain_matmul linalg_vecdot", _of(product)),
    **_names("_grouped_mm _scaled_grouped_mm grouped_mm_fallback", _of(grouped)),
    **_names("bilinear _trilinear", _of(bilinear)),
    "einsum": _of(einsum),
    **_names("conv1d conv2d conv3d convolution _convolution mkldnn_convolution", _of(convolution)),
    **_names("conv_transpose1d conv_transpose2d conv_transpose3d", _of(convolution)),
    **_names("scaled_dot_product_attention _scaled_dot_product_flash_attention", _of(attention)),
    **_names("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math", _of(attention)),
    **_names("_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention", _of(attention)),
    **_names("_transformer_encoder_layer_fwd _native_multi_head_attention", _of(encoder)),
    **_names("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", _of(recurrent)),
    **_names("rms_norm _fused_rms_norm", _root_mean_square),
    **_names("layer_norm native_layer_norm group_norm", _simple("normalise", 8)),
    **_names("native_group_norm instance_norm cosine_similarity", _simple("normalise", 8)),
    **_names("batch_norm native_batch_norm _native_batch_norm_legit", _simple("normalise", 4)),
    **_names("_native_batch_norm_legit_no_training", _simple("normalise", 4)),
    **_names("softmax _softmax _safe_softmax log_softmax _log_softmax softmin", _softmax),
    **_names("sum mean amax amin max min prod all any argmax argmin var std var_mean std_mean norm", _reduction),
    **_names("linalg_vector_norm cumsum cumprod logsumexp logcumsumexp topk sort argsort median", _reduction),
    **_names("nonzero bincount histc count_nonzero unique_dim _unique2 aminmax", _reduction),
    **_names("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d", _reduction),
    **_names("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", _reduction),
    **_names("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", _pool),
    **_names("max_pool2d_with_indices max_pool3d_with_indices", _pool),
    **_names(
        "add sub mul div rsub neg abs sqrt rsqrt reciprocal floor ceil round trunc sign square", _simple("elementwise")
    ),
    **_names(
        "relu relu6 leaky_relu prelu threshold hardtanh hardswish hardsigmoid clamp clamp_min", _simple("elementwise")
    ),
    **_names("clamp_max minimum maximum eq ne lt le gt ge logical_and logical_or", _simple("elementwise")),
    **_names(
        "logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf", _simple("elementwise")
    ),
    **_names("where masked_fill triu tril dropout native_dropout lerp floor_divide", _simple("elementwise")),
    **_names("remainder fmod isfinite nan_to_num bitwise_left_shift bitwise_right_shift", _simple("elementwise")),
    **_names("addcmul addcdiv", _simple("elementwise", 3)),
    **_names(
        "exp exp2 expm1 log log2 log10 log1p erf erfc erfinv tanh sigmoid silu gelu", _simple("transcendental", 10)
    ),
    **_names("mish softplus elu selu celu log_sigmoid logit glu sin cos tan asin", _simple("transcendental", 10)),
    **_names("acos atan atan2 sinh cosh polar view_as_complex_copy", _simple("transcendental", 10)),
    "pow": _power,
    **_names("clone contiguous to _to_copy type_as reshape flatten copy cat concat stack hstack", _copied),
    **_names("vstack repeat tile repeat_interleave roll flip lift_fresh_copy _unsafe_view", _copied),
    **_names("expand_copy constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad1d", _copied),
    **_names("replication_pad2d unfold im2col pixel_shuffle pixel_unshuffle unfold_copy alias_copy", _copied),
    **_names("float double half bfloat16 int long channel_shuffle narrow_copy select_copy", _copied),
    **_names("arange zeros ones full zeros_like ones_like full_like new_zeros new_ones fill zero", _filled),
    **_names("new_full scalar_tensor linspace eye one_hot rand randn randint bernoulli", _filled),
    **_names("empty empty_like new_empty empty_strided new_empty_strided", _allocated),
    **_names("embedding index_select gather index take take_along_dim masked_select", _picked),
    **_names("scatter scatter_add scatter_reduce index_put _index_put_impl index_copy index_add", _put),
    **_names("index_fill masked_scatter slice_scatter select_scatter", _put),
    **_names("upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest1d", _simple("resize", 8)),
    **_names("upsample_linear1d grid_sampler grid_sampler_2d _upsample_bilinear2d_aa", _simple("resize", 8)),
}
