"""PyTorch's functions by what they need of a tensor: nothing, a view, its values, or its very memory."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere

from ...ir.errors import InputError


class Kind(Enum):
    """What a function does with a tensor that has no memory of its own."""

    COMPUTE = auto()  # needs the values
    TOLD = auto()  # needs none
    VIEW = auto()  # makes a view, mostly
    ITERATE = auto()
    CONVERT = auto()  # returns its argument where there is nothing to do
    WHOLE = auto()  # hands the memory itself on
    EMBED = auto()
    WRITE = auto()
    ADDRESS = auto()  # asks where the memory is
    NEVER = auto()  # is False of a lazy tensor


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_TOLD = _words("""
shape dtype device layout ndim is_cuda is_cpu is_meta is_sparse is_sparse_csr is_quantized is_mkldnn is_mps is_xpu
is_xla is_mtia is_ipu is_maia is_vulkan is_nested is_leaf requires_grad grad grad_fn names itemsize nbytes _version name
output_nr retains_grad _backward_hooks _grad size stride dim numel nelement ndimension storage_offset is_contiguous
is_floating_point is_complex is_signed is_inference is_conj is_neg element_size get_device __len__ has_names
is_distributed __hash__ _is_view _is_zerotensor dense_dim sparse_dim dim_order __dlpack_device__ is_coalesced
""")
_VIEW = _words("""
detach data T mT H mH t transpose swapaxes swapdims permute movedim moveaxis adjoint view view_as reshape reshape_as
flatten unflatten ravel expand expand_as broadcast_to unsqueeze squeeze narrow select split split_with_sizes chunk
unbind tensor_split hsplit vsplit dsplit diagonal as_strided __getitem__ contiguous alias unfold real
""")
_CONVERT = _words("to type type_as cpu float half double bfloat16 int long short char byte bool")
_WHOLE = _words("numpy __array__ __dlpack__ __reduce_ex__ __reduce__ __deepcopy__ __repr__ __str__ __format__")
_ADDRESS = _words("""
data_ptr const_data_ptr untyped_storage storage _typed_storage share_memory_ __cuda_array_interface__
""")
_NEVER = _words("is_shared is_pinned")
_EMBED: set[Any] = {F.embedding, torch.embedding, torch.ops.aten.embedding, torch.ops.aten.embedding.default}

# Functions whose results are never views; whatever is not here is looked at.
MAKE_NEW: frozenset[Any] = frozenset(
    [
        *(F.linear, F.layer_norm, F.rms_norm, F.group_norm, F.conv1d, F.conv2d, F.conv3d, torch.addmm, torch.matmul),
        *(torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.Tensor.add, torch.Tensor.__add__),
        *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mul, torch.add, torch.exp, torch.Tensor.clone),
        *(torch.mm, torch.bmm, torch.cat, torch.conv1d, torch.conv2d, torch.Tensor.__rsub__),
        *(f for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f is not None),
    ]
)
# Told by any tensor of the same shape, strides and type.
GEOMETRY: frozenset[Any] = frozenset(
    [
        *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "itemsize", "nbytes")),
        *(getattr(torch.Tensor, n) for n in _words("size stride dim numel nelement ndimension storage_offset")),
        *(getattr(torch.Tensor, n) for n in _words("is_contiguous is_floating_point is_complex element_size __len__")),
    ]
)
# Of any argument but the first, these ask for nothing but shape and type.
SHAPE_ONLY: frozenset[Any] = frozenset(
    getattr(torch.Tensor, name) for name in ("view_as", "expand_as", "reshape_as", "to", "type_as")
)


def _table() -> dict[Hashable, Kind]:
    found: dict[Hashable, Kind] = {}
    kinds = ((_TOLD, Kind.TOLD), (_VIEW, Kind.VIEW), (_CONVERT, Kind.CONVERT), (_WHOLE, Kind.WHOLE))
    for names, kind in (*kinds, (_ADDRESS, Kind.ADDRESS), (_NEVER, Kind.NEVER)):
        for name in names:
            for holder in (torch.Tensor, torch):
                member: Any = getattr(holder, name, None)
                if member is None or (holder is torch and not callable(member)):
                    continue
                # A property is known by its getter, a method by itself.
                getter = type(member).__name__ in ("getset_descriptor", "property")
                found[member.__get__ if getter else member] = kind
    found[torch.Tensor.__iter__] = Kind.ITERATE
    for embedding in _EMBED:
        found[embedding] = Kind.EMBED
    return found


_KINDS = _table()


def kind_of(func: Any) -> Kind:
    """What `func`, as __torch_function__ is given it, does with a tensor."""
    kind = _KINDS.get(func)
    return _by_name(func) if kind is None else kind


def _by_name(func: Any) -> Kind:
    name = str(getattr(func, "__name__", ""))
    if name == "__set__" or name == "__setitem__" or name == "__delitem__" or name == "__setstate__":
        kind = Kind.WRITE
    elif name.startswith("__"):
        in_place = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
        kind = Kind.WRITE if in_place else Kind.COMPUTE
    else:
        kind = Kind.WRITE if name.split(".")[0].endswith("_") or name.endswith(".out") else Kind.COMPUTE
    _KINDS[func] = kind
    return kind


def writes_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: type) -> bool:
    """Whether the operator `func` of ATen writes to an argument of type `kind`."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            values: Any = value if isinstance(value, (list, tuple)) else (value,)
            if any(isinstance(v, kind) for v in values):
                return True
    return False


def is_so(func: Any, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether converting `tensor` changes nothing."""
    name = func.__name__
    layouts = (None, torch.preserve_format)
    if name == "to":
        if kwargs.get("copy"):
            return False
        named = {k: v for k, v in kwargs.items() if k != "copy"}
        try:
            device, dtype, _, layout = torch._C._nn._parse_to(*args, **named)  # pyright: ignore
        except (RuntimeError, TypeError):
            return False
        kept = layout in layouts or (layout == torch.contiguous_format and tensor.is_contiguous())
        return _same(device, tensor.device) and dtype in (None, tensor.dtype) and kept
    if args or kwargs.get("memory_format") not in layouts:
        return name == "type" and len(args) == 1 and args[0] == tensor.dtype
    if name == "cpu":
        return tensor.device.type == "cpu"
    wanted = {"int": "int32", "long": "int64", "short": "int16", "char": "int8", "byte": "uint8", "half": "float16"}
    wanted |= {"float": "float32", "double": "float64"}
    return str(tensor.dtype).removeprefix("torch.") == wanted.get(name, name)


def _same(wanted: torch.device | None, device: torch.device) -> bool:
    """Whether what is on `device` is where it is wanted; without an index, any one of that type is meant."""
    return wanted is None or (wanted.type == device.type and wanted.index in (None, device.index))


def embedding_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Table, indices and max_norm of a call of one of the embedding functions."""
    names = ("input", "weight", "padding_idx", "max_norm") if func is F.embedding else ("weight", "indices")
    given = dict(zip(names, args, strict=False)) | kwargs
    return given.get("weight"), given.get("input", given.get("indices")), given.get("max_norm")


def harmless_write(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a function that writes would write what is there already: no gradient."""
    owner = getattr(func, "__self__", None)
    grads = (torch.Tensor.grad, torch.Tensor._grad)  # pyright: ignore
    return func.__name__ == "__set__" and len(args) == 2 and args[1] is None and owner in grads


def wanted_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """Whether a gradient is asked for or off, None of a function that does neither."""
    name, owner = func.__name__, getattr(func, "__self__", None)
    if name == "requires_grad_":
        return bool(args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    if name == "__set__" and len(args) == 2 and owner is torch.Tensor.requires_grad:
        return bool(args[1])
    return None


def refuse_write(name: str, why: str = "this would write to it") -> InputError:
    """For a change of a weight in place."""
    return InputError(
        f"'{name}' cannot be changed: {why}, and a plan reads it from the store again and again; change the module "
        "before it is planned"
    )


def refuse_address(name: str, func: Any) -> InputError:
    """For whoever asks where a weight lies."""
    what = getattr(func, "__name__", func)
    return InputError(
        f"'{name}' has no memory of its own ({what} asks for it): the plan moves it; use `.clone()` for a copy"
    )
