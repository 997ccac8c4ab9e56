"""Cost of the calls of a training step: those of `pytorch.costs`, and the operators that only a backward has.

Workspaces are what the CPU kernels of torch 2.13 allocate beside their results, by the allocation events of its
profiler; `tests/planner/test_training_costs.py` takes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, cast

import torch
from torch import fx

from ..costs import OperatorCost
from ..pytorch.costs import Call, Work, call_of, elements, tensor_nbytes, torch_cost

_KEY_BLOCK = 512
_QUERY_BLOCKS = ((768, 256), (192, 64), (0, 32))
"""aten/src/ATen/native/cpu/FlashAttentionKernel.cpp: keys, and queries by their number, are taken in such blocks."""
_FLOAT_NBYTES = 4
_IMAGE_CHANNELS = 4
"""oneDNN reads sources of up to so many channels as they lie."""


def call_cost(node: fx.Node) -> OperatorCost:
    """Cost of a call of the joint graph; as `pytorch.costs.torch_cost`."""
    known = torch_cost(node)
    call = call_of(node)
    rule = _RULES.get(call.name)
    if rule is None:
        return known
    work = rule(call)
    moved = call.in_nbytes + call.out_nbytes if work.moved_nbytes is None else work.moved_nbytes
    return replace(
        known,
        cost_class=work.cost_class,
        flops=work.flops,
        moved_nbytes=moved,
        workspace_nbytes=work.workspace_nbytes,
    )


def _convolution(call: Call) -> Work:
    """Weight [filters, channels / groups, ...]; transposed, [channels, filters / groups, ...].

    oneDNN makes a blocked copy of the weight, of the result (of a transposed one's two, and none of its source) and,
    unless it has the channels of an image, of the source. In half precision, which this kind of processor computes in
    float, copies of source and result are made in both.
    """
    source, weight = call.inputs[0], call.inputs[1]
    transposed = bool(call.arguments.get("transposed"))
    flops = 2 * (source.numel() if transposed else call.out_elements) * prod(weight.shape[1:])
    workspace = (2 if transposed else 1) * call.out_nbytes + tensor_nbytes(weight)
    workspace += tensor_nbytes(source) if source.shape[1] > _IMAGE_CHANNELS and not transposed else 0
    if source.element_size() < _FLOAT_NBYTES:
        workspace = 3 * (call.out_nbytes + tensor_nbytes(source))
    return Work(_convolution_class(call, weight), flops, None, workspace)


def _convolution_class(call: Call, weight: torch.Tensor) -> str:
    groups = cast("int", call.arguments.get("groups", 1))
    return "conv_nchw_depthwise" if groups > 1 and weight.shape[1] == 1 else "conv_nchw"


def _convolution_backward(call: Call) -> Work:
    """One more convolution for the gradient of the source, and one for that of the weight.

    The incoming gradient is copied into blocks, with it the weight (an image's once more, with as many channels as a
    block has) and, for the weight's gradient, the source.
    """
    gradient, source, weight = call.inputs[:3]
    mask = cast("tuple[bool, ...]", call.arguments["output_mask"])
    outer = source.numel() if call.arguments.get("transposed") else gradient.numel()
    flops = 2 * outer * prod(weight.shape[1:]) * (bool(mask[0]) + bool(mask[1]))
    workspace = tensor_nbytes(gradient) + tensor_nbytes(weight)
    workspace += tensor_nbytes(source) if mask[1] else 0
    workspace += 2 * tensor_nbytes(weight) if weight.shape[1] <= _IMAGE_CHANNELS else 0
    if source.element_size() < _FLOAT_NBYTES:
        workspace *= 3
    return Work(_convolution_class(call, weight), flops, None, workspace)


def _attention_backward(call: Call) -> Work:
    """Five products of a pair of positions, the scores made again among them: key and query twice, value once more.

    Each thread has blocks of scores and of their gradients, and in half precision both again in that. The incoming
    gradient is copied where it does not lie with the heads next to one another.
    """
    gradient, query, key, value = call.inputs[:4]
    length, size = query.shape[-2:]
    reach, width = key.shape[-2], value.shape[-1]
    pairs = length * reach
    if call.arguments.get("is_causal"):
        pairs = sum(min(i + 1, reach) for i in range(length))
    flops = 2 * prod(query.shape[:-2]) * pairs * (3 * size + 2 * width)
    rows = min(length, next(block for least, block in _QUERY_BLOCKS if length >= least))
    columns = min(_KEY_BLOCK, reach)
    block = _FLOAT_NBYTES + (query.element_size() if query.element_size() < _FLOAT_NBYTES else 0)
    workspace = torch.get_num_threads() * 2 * rows * columns * block
    if gradient.dim() == 4 and not gradient.transpose(1, 2).is_contiguous():
        workspace += tensor_nbytes(gradient)
    return Work("attention", flops, None, workspace)


def _layer_norm_backward(call: Call) -> Work:
    """The weight's and the bias's gradients are summed by each thread, in float."""
    columns = prod(cast("tuple[int, ...]", call.arguments.get("normalized_shape") or call.inputs[1].shape[-1:]))
    return Work("normalise", 14 * elements(call.inputs[0]), None, torch.get_num_threads() * 2 * columns * _FLOAT_NBYTES)


def _batch_norm_backward(call: Call) -> Work:
    mask = cast("tuple[bool, ...]", call.arguments["output_mask"])
    workspace = tensor_nbytes(call.inputs[1]) if mask[0] else 0
    return Work("normalise", 10 * elements(call.inputs[0]), None, workspace)


def _rms_norm_backward(call: Call) -> Work:
    """On the CPU several operators, with a few values of the input's size between them."""
    return Work("normalise", 14 * elements(call.inputs[0]), None, 2 * tensor_nbytes(call.inputs[0]))


def _dropout(call: Call) -> Work:
    """The input times the mask, and that times a factor: the first is there until the second is."""
    return Work("elementwise", 2 * call.out_elements, None, tensor_nbytes(call.outputs[0]))


def _dropout_backward(call: Call) -> Work:
    """The mask as numbers, and the gradient times these; both are there until the product with the factor is begun."""
    return Work("elementwise", 2 * call.out_elements, None, 2 * tensor_nbytes(call.outputs[0]))


def _safe_softmax(call: Call) -> Work:
    """Where a row is masked as a whole: a truth value for each score, and one for each row."""
    elements_in, rows = call.out_elements, call.out_elements // max(1, call.inputs[0].shape[-1])
    return Work("softmax", 5 * elements_in, None, elements_in + rows)


def _embedding_backward(call: Call) -> Work:
    """A table of zeros, and the rows of the gradient added to some of its rows."""
    gradient = tensor_nbytes(call.inputs[0])
    return Work("scatter", elements(call.inputs[0]), call.out_nbytes + 3 * gradient)


def _picked_loss(call: Call) -> Work:
    """One value a row is read."""
    target = call.tensor("target")
    rows = elements(target) if target is not None else 0
    return Work("gather", 2 * rows, rows * (call.inputs[0].element_size() + 8))


def _filled_gradient(call: Call) -> Work:
    return Work("copy", 0, call.out_nbytes)


def _copied_into_zeros(call: Call) -> Work:
    given = tensor_nbytes(call.inputs[0]) if call.inputs else 0
    return Work("copy", 0, call.out_nbytes + 2 * given)


def _softmax_backward(call: Call) -> Work:
    rank = call.inputs[0].dim()
    last = call.arguments.get("dim", -1) in (-1, rank - 1)
    return Work("softmax" if last else "softmax_outer", 5 * call.out_elements)


def _simple(cost_class: str, per_element: int = 1) -> Callable[[Call], Work]:
    return lambda call: Work(cost_class, per_element * call.out_elements)


def _names(text: str, rule: Callable[[Call], Work]) -> dict[str, Callable[[Call], Any]]:
    return dict.fromkeys(text.split(), rule)


_RULES: dict[str, Callable[[Call], Work]] = {
    **_names("convolution _convolution", _convolution),
    "convolution_backward": _convolution_backward,
    **_names("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
    **_names(
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_fused_attention_overrideable_backward",
        _attention_backward,
    ),
    **_names("_scaled_dot_product_efficient_attention_backward", _attention_backward),
    "native_layer_norm_backward": _layer_norm_backward,
    **_names("_fused_rms_norm_backward", _rms_norm_backward),
    **_names("native_batch_norm_backward batch_norm_backward", _batch_norm_backward),
    **_names("_native_batch_norm_legit_functional _batch_norm_with_update_functional", _simple("normalise", 4)),
    **_names("native_group_norm_backward", _simple("normalise", 14)),
    "native_dropout": _dropout,
    "native_dropout_backward": _dropout_backward,
    "_safe_softmax": _safe_softmax,
    **_names("embedding_dense_backward embedding_backward", _embedding_backward),
    **_names("nll_loss_forward nll_loss2d_forward", _picked_loss),
    **_names("nll_loss_backward nll_loss2d_backward", _filled_gradient),
    **_names("slice_backward select_backward diagonal_backward unfold_backward", _copied_into_zeros),
    **_names("as_strided_scatter diagonal_scatter", _copied_into_zeros),
    **_names("_softmax_backward_data _log_softmax_backward_data", _softmax_backward),
    **_names("threshold_backward hardtanh_backward leaky_relu_backward prelu_backward", _simple("elementwise")),
    **_names("_prelu_kernel_backward hardsigmoid_backward hardswish_backward", _simple("elementwise", 3)),
    **_names("sigmoid_backward tanh_backward mse_loss mse_loss_backward huber_loss", _simple("elementwise", 3)),
    **_names("huber_loss_backward smooth_l1_loss smooth_l1_loss_backward", _simple("elementwise", 3)),
    **_names("gelu_backward silu_backward softplus_backward elu_backward mish_backward", _simple("transcendental", 14)),
    **_names("log_sigmoid_forward log_sigmoid_backward glu_backward", _simple("transcendental", 14)),
    **_names("binary_cross_entropy binary_cross_entropy_backward", _simple("transcendental", 10)),
    **_names("binary_cross_entropy_with_logits", _simple("transcendental", 10)),
    **_names("max_pool2d_with_indices_backward max_pool3d_with_indices_backward", _simple("scatter")),
    **_names("avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward", _simple("elementwise", 2)),
    **_names("_adaptive_avg_pool3d_backward adaptive_max_pool2d_backward", _simple("elementwise", 2)),
    **_names(
        "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward", _simple("resize", 8)
    ),
    **_names("upsample_bilinear2d_backward upsample_bicubic2d_backward", _simple("resize", 8)),
    **_names("upsample_linear1d_backward grid_sampler_2d_backward", _simple("resize", 8)),
    **_names("reflection_pad1d_backward reflection_pad2d_backward replication_pad2d_backward", _copied_into_zeros),
    **_names("_unsafe_index_put", lambda call: Work("scatter")),
}
