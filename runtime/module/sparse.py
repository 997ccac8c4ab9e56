"""Feed-forward layers with a sparse activation, of whose weights only the rows of active neurons are read.

LLM in a flash (Alizadeh et al., 2023, arXiv 2312.11514), to the bit. Behind ReLU most neurons are zero. What a zero is
multiplied with matters little: with any finite weight the product is zero. So the same product runs over a buffer of
the shape, strides and alignment of the whole matrix, in which the weights of active neurons are filled in, and all
others are zero. Every product and every sum is then that of the whole matrix, except for the sign of zeros: an operand
that is -0 in one and +0 in the other changes no sum but one that is zero itself. That leaves

- weights that are not finite, or not under autocast: neurons with such a weight are always read;
- results that are zero: where one is, and a skipped weight may have had another sign, the layer is read as a whole and
  computed again.

It holds for kernels that add up products, as those of PyTorch on CPUs do. The buffer is one for all layers; what stays
from call to call is a window of rows (`RowWindow`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ...ir.errors import InputError
from .replaced import Forward, Replaced
from .sparse_layer import Scratch, SparseLayer, bits, neurons_apart
from .sparse_rows import READ_NBYTES, RowFile, RowLayout
from .sparse_sites import Site, check_once, matrices_of, order_of, read_rows
from .sparse_window import RowWindow


class SparseForwards:
    """The forwards of `sites` of `module`, which from here on read rows of active neurons from a file of their own.

    Call it after a ModuleExecutor has taken the module, or without one. The file takes the bytes of the output
    projections, and with a gate those of `up`, in `folder` (by default the cache); it has no name and ends with this.
    The modules' own weights are read once, one layer at a time, and not afterwards: whoever calls this frees them.

    A layer keeps the rows of the last `window` calls, at most `rows` of them. Gaps of up to `bridge_nbytes` are read
    with their neighbours: latency x bandwidth of the disk. `at_once` requests are under way at a time. `bundled` stores
    the rows of a neuron together. `orders` lists, by name of the output projection, all neurons as they shall be
    stored. `recording` keeps the neurons that each call asked for, in `layers[i].active`. Raises InputError, with the
    module untouched, for a site that is none; ExecutionError where the disk has no room.
    """

    def __init__(
        self,
        module: nn.Module,
        sites: Sequence[Site],
        *,
        window: int,
        rows: int,
        bridge_nbytes: int = 0,
        at_once: int = 8,
        bundled: bool = True,
        orders: Mapping[str, Sequence[int]] | None = None,
        recording: bool = False,
        folder: Path | None = None,
    ) -> None:
        if window < 0 or rows < 0 or bridge_nbytes < 0 or at_once < 1:
            raise InputError(
                f"a window of {window} calls and {rows} rows, gaps of {bridge_nbytes} bytes: give 0 or more; and of "
                f"{at_once} requests at once: give 1 or more"
            )
        modules = dict(module.named_modules(remove_duplicate=False))
        found = [matrices_of(modules, site) for site in sites]
        places = [order_of(site, m[0], orders or {}) for site, m in zip(sites, found, strict=True)]
        check_once(sites)
        layouts = [RowLayout(m[0].neurons, m[0].row_nbytes, len(m), bundled or len(m) == 1) for m in found]
        self._file = RowFile.write(layouts, lambda i: read_rows(found[i], places[i]), folder, at_once=at_once)
        self._scratch = Scratch([m[0] for m in found], [m[1] for m in found if len(m) > 1])
        self._lock = threading.RLock()
        self.layers = tuple(
            SparseLayer(
                number,
                matrices,
                place,
                self._file,
                self._scratch,
                RowWindow(matrices[0].neurons, layout.neuron_nbytes, calls=window, rows=min(rows, layout.neurons)),
                bridge_nbytes,
                recording=recording,
            )
            for number, (matrices, place, layout) in enumerate(zip(found, places, self._file.layouts, strict=True))
        )
        self._replaced = Replaced()
        for site, layer in zip(sites, self.layers, strict=True):
            if site.gate is None:
                self._replaced.replace(layer.down.module, lambda original, layer=layer: self._plain(layer, original))
            else:
                self._install_gated(modules[site.gate], layer, squared=site.squared)

    def __enter__(self) -> SparseForwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put the forwards back and give file and memory back; again is allowed."""
        with self._lock:
            self._replaced.put_back()
            self._file.close()
            self._scratch.close()
            for layer in self.layers:
                layer.close()

    def touch(self) -> None:
        """Take all the memory that it ever takes, which else comes with the neurons that become active."""
        with self._lock:
            for layer in self.layers:
                layer.touch()

    @property
    def memory_nbytes(self) -> int:
        """The most memory that all of it ever takes, beside what a call computes."""
        return (
            self._scratch.nbytes
            + self._file.memory_nbytes
            + 2 * READ_NBYTES  # rows of a batch, and what is made of them
            + sum(layer.nbytes for layer in self.layers)
        )

    @property
    def file_nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(layout.nbytes for layout in self._file.layouts)

    def _plain(self, layer: SparseLayer, original: Forward) -> Forward:
        """Of an output projection that reads ReLU's output."""

        def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
            with self._lock, torch.no_grad():
                if not layer.down.in_place():
                    return original(input)  # somebody has put another weight there
                return layer.project(input, original, exact=True)[0]

        return forward

    def _install_gated(self, gate: nn.Module, layer: SparseLayer, *, squared: bool) -> None:
        noted = _Noted()
        up, down = layer.matrices[1], layer.down
        above: list[Forward] = []

        def of_gate(original: Forward) -> Forward:
            def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
                noted.input, noted.gate, noted.skipped = input, None, False
                result = original(input)
                noted.gate = result
                return result

            return forward

        def of_up(original: Forward) -> Forward:
            above.append(original)

            def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
                with self._lock, torch.no_grad():
                    if not up.in_place():
                        return original(input)
                    gated = noted.gate if noted.input is input and not _hooked(gate, up.module, down.module) else None
                    noted.skipped = gated is not None and up.stays_finite(input)
                    if gated is None or not noted.skipped:
                        layer.fill_all()
                    else:
                        layer.fill(neurons_apart((bits(gated) > 0) | gated.isnan(), up.neurons))
                    return up.compute(input, original)

            return forward

        def of_down(original: Forward) -> Forward:
            def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
                with self._lock, torch.no_grad():
                    if not down.in_place():
                        return original(input)
                    skipped, x, g = noted.skipped, noted.input, noted.gate
                    noted.input, noted.gate, noted.skipped = None, None, False
                    result, exact = layer.project(input, original, exact=not skipped)
                    if exact is not False or x is None or g is None:
                        return result
                    layer.fill_all()
                    activation = torch.relu(g)
                    activation = torch.square(activation) if squared else activation
                    return down.compute((activation * up.compute(x, above[0])).view(input.shape), original)

            return forward

        self._replaced.replace(gate, of_gate)
        self._replaced.replace(up.module, of_up)
        self._replaced.replace(down.module, of_down)


class _Noted(threading.local):
    """What the gate of a layer has computed in this thread, from what; and whether neurons of `up` were skipped."""

    input: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    skipped = False


def _hooked(gate: nn.Module, up: nn.Module, down: nn.Module) -> bool:
    """Whether somebody looks at, or changes, what is between these modules."""
    return bool(gate._forward_hooks or up._forward_hooks or down._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
