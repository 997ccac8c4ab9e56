"""Results of a forward that the caller may write in place, while the backward is to read them again.

Autograd counts the writes to what it saved, and refuses a backward that would read something else. What a planned step
saves it does not know; so they are counted here. On the tensors that the caller has got: autograd makes some of those
anew, over the same memory, with counts of their own (PyTorch's own compiled functions miss the writes to these).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .joint_graph import Joint, is_view, memory_of


def shown(joint: Joint) -> tuple[int, ...]:
    """Positions of the forward's outputs that the caller gets and whose memory the backward reads.

    Left out is the memory of what the forward is given: autograd itself looks at that.
    """
    outputs = joint.outputs[: joint.forward_outputs]
    nodes: list[fx.Node] = list(joint.module.graph.nodes)
    last = max((i for i, n in enumerate(nodes) if n in outputs), default=-1)
    read = {memory_of(n.meta.get("val")) for n in joint.gradients.values()}
    for node in nodes[last + 1 :]:
        if node.op == "call_function" and not is_view(node) and not _reads_form_only(node):
            read.update(memory_of(n.meta.get("val")) for n in node.all_input_nodes)
    given = {memory_of(n.meta.get("val")) for n in joint.module.graph.find_nodes(op="placeholder")}
    theirs = ((i, n) for i, n in enumerate(outputs) if n is not None and i not in joint.updates)
    return tuple(i for i, n in theirs if memory_of(n.meta.get("val")) in read - given - {None})


def _reads_form_only(node: fx.Node) -> bool:
    """Whether a call makes something of the form of its argument, whatever that holds: zeros_like, new_empty."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return name.endswith("_like") or name.startswith("new_")


class Unwritten:
    """The `results`, which the caller has, that lie in the memory of one of `kept`: with their counts of writes."""

    def __init__(self, results: Sequence[Any], kept: Sequence[torch.Tensor]) -> None:
        memories = {memory_of(t) for t in kept}
        found = [r for r in results if isinstance(r, torch.Tensor) and memory_of(r) in memories]
        self._versions = [(r.detach(), r._version) for r in found]  # detached they share the counts

    def check(self) -> None:
        """RuntimeError, in PyTorch's words, where one was written since."""
        for result, version in self._versions:
            if result._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{result.type()} {list(result.shape)}], which is a result of the planned step, is at version "
                    f"{result._version}; expected version {version} instead. Write to a clone of it"
                )
