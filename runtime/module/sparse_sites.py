"""Where rows are read: feed-forward layers by name, checked, and the rows of their matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ...ir.errors import InputError
from .lazy import LazyTensor
from .sparse_layer import Matrix
from .sparse_rows import Bytes, Indices


class Site(Protocol):
    """A feed-forward layer, by the qualified names of its nn.Linear modules.

    `down` reads act(up(x)), or with a gate act(gate(x)) * up(x), where act is ReLU, `squared` or not. With a gate,
    `gate` runs before `up`, on the same tensor, and nothing but `down` reads the product, nothing but the product what
    `up` gives.
    """

    @property
    def down(self) -> str:
        """Name of the output projection."""
        ...

    @property
    def up(self) -> str:
        """Name of the input projection that the gate multiplies; without a gate of the one there is."""
        ...

    @property
    def gate(self) -> str | None:
        """Name of the gate's projection."""
        ...

    @property
    def squared(self) -> bool:
        """Whether the activation is the square of ReLU."""
        ...


def matrices_of(modules: Mapping[str, nn.Module], site: Site) -> list[Matrix]:
    """The output projection, and with a gate the input projection. Raises InputError."""
    names = [site.down, site.up, *([] if site.gate is None else [site.gate])]
    for name in names:
        _check_linear(modules, name)
    down = Matrix(modules[site.down], site.down, by_row=False)
    up = Matrix(modules[site.up], site.up, by_row=True)
    for name, size in (
        (site.up, up.neurons),
        *([] if site.gate is None else [(site.gate, _outputs(modules[site.gate]))]),
    ):
        if size != down.neurons:
            raise InputError(f"'{name}' has {size} outputs, '{site.down}' {down.neurons} inputs: no feed-forward layer")
    if site.gate is None:
        return [down]
    if (up.dtype, up.row_nbytes) != (down.dtype, down.row_nbytes):
        raise InputError(
            f"'{site.up}' has rows of {up.row_nbytes} bytes of {up.dtype}, '{site.down}' columns of {down.row_nbytes} "
            f"bytes of {down.dtype}; give the site without its gate"
        )
    return [down, up]


def _outputs(module: nn.Module) -> int:
    weight = module._parameters["weight"]  # pyright: ignore[reportPrivateUsage]
    return 0 if weight is None else weight.shape[0]


def _check_linear(modules: Mapping[str, nn.Module], name: str) -> None:
    part = modules.get(name)
    weight = None if part is None else part._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]
    if part is None or weight is None or type(part).forward is not nn.Linear.forward:
        kind = "no module" if part is None else f"a {type(part).__name__}"
        raise InputError(f"'{name}' is {kind}; rows are read for an nn.Linear with a weight of its own")
    if weight.device.type != "cpu" or not weight.is_floating_point() or not weight.is_contiguous():
        raise InputError(
            f"'{name}' has a weight of {weight.dtype} on '{weight.device}' with strides {list(weight.stride())}; rows "
            "are read for dense weights of floating point on 'cpu'"
        )


def check_once(sites: Sequence[Site]) -> None:
    """InputError where a module belongs to two of them."""
    names = [n for s in sites for n in (s.down, s.up, s.gate) if n is not None]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"'{twice}' belongs to several feed-forward layers; name each module once")


def order_of(site: Site, down: Matrix, orders: Mapping[str, Sequence[int]]) -> Indices:
    """The neurons of a site as they shall be stored. Raises InputError where `orders` does not list each once."""
    order = np.asarray(orders.get(site.down, range(down.neurons)), np.int64)
    if not np.array_equal(np.sort(order), np.arange(down.neurons)):
        raise InputError(
            f"the order of '{site.down}' has {len(order)} neurons, {len(set(order.tolist()))} of them different; the "
            f"layer has {down.neurons}: list each once"
        )
    return order


def read_rows(matrices: Sequence[Matrix], order: Indices) -> Callable[[int, int], Sequence[Bytes]]:
    """Rows of the neurons at places [start, stop) of each matrix, while its weights are in memory."""
    values: list[torch.Tensor] = []
    for matrix in matrices:
        held = matrix.weight
        values.append(held.weights.read(held.source).detach() if isinstance(held, LazyTensor) else held.detach())
        matrix.examine(values[-1])

    def rows(start: int, stop: int) -> Sequence[Bytes]:
        wanted = torch.from_numpy(order[start:stop])
        return [m.rows_of(v, wanted) for m, v in zip(matrices, values, strict=True)]

    return rows
