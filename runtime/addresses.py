"""Where every byte is at every instant of a plan, looked up once before the first step."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph, Storage, Tensor
from ..ir.plan import Plan, Residency, Transfer


class Addresses:
    """Arena offsets of tensors by step and of transfers, by the residencies of `tier`."""

    def __init__(self, plan: Plan, graph: Graph, tier: str) -> None:
        self._graph = graph
        self._period = len(plan.steps)
        self._tier = tier
        self._stays = {
            storage: tuple(r for r in stays if r.tier == tier) for storage, stays in plan.residencies_of.items()
        }
        arena = plan.arena_nbytes.get(tier, 0)
        for r in plan.residencies:
            if r.tier == tier and not 0 <= r.offset <= r.offset + r.nbytes <= arena:
                raise PlanMismatchError(
                    f"'{r.storage}' lies at [{r.offset}, {r.offset + r.nbytes}) of '{tier}', whose arena has {arena} "
                    "bytes; plan again"
                )

    def has(self, storage: str, instant: int) -> bool:
        """Whether any byte of `storage` has a place at `instant`."""
        return bool(self._live(storage, instant, instant + 1))

    def of_tensor(self, tensor: Tensor, step: int) -> int:
        """Arena offset of `tensor` while `step` runs; 0 for a tensor without bytes. Raises PlanMismatchError."""
        assert tensor.storage is not None
        storage = self._storage(tensor)
        if storage.nbytes == 0:
            return 0
        stays = self._live(storage.id, step, step + 1)
        base = self._base(storage.id, stays, 0, storage.nbytes, f"step {step}")
        if base % storage.alignment:
            raise PlanMismatchError(
                f"'{storage.id}' lies at {base} of '{self._tier}' in step {step}, not a multiple of its alignment of "
                f"{storage.alignment} bytes; plan again"
            )
        return base + tensor.offset

    def of_transfer(self, move: Transfer) -> int:
        """Arena offset of the bytes of `move`, which stay there as long as it may run. Raises PlanMismatchError."""
        stays = self._live(move.storage, move.after, move.before)
        # Bytes may have a new place before they leave the old one: they come into the new and go from the old.
        age = {r: (move.after - r.start) % self._period for r in stays}
        stays.sort(key=lambda r: age[r], reverse=move.target != self._tier)
        chosen: list[Residency] = []
        for r in stays:
            if r.lo < move.hi and move.lo < r.hi and not any(r.lo < c.hi and c.lo < r.hi for c in chosen):
                chosen.append(r)
        where = f"the transfer over {move.link} in instants [{move.after}, {move.before}]"
        return self._base(move.storage, chosen, move.lo, move.hi, where) + move.lo

    def _storage(self, tensor: Tensor) -> Storage:
        assert tensor.storage is not None
        storage = self._graph.storage[tensor.storage]
        if tensor.offset < 0 or tensor.offset + tensor.nbytes > storage.nbytes:
            raise PlanMismatchError(
                f"tensor '{tensor.id}' takes bytes [{tensor.offset}, {tensor.offset + tensor.nbytes}) of "
                f"'{storage.id}', which has {storage.nbytes}; plan again"
            )
        return storage

    def _live(self, storage: str, begin: int, end: int) -> list[Residency]:
        """Residencies that last through [begin, end), in this pass, out of the last or into the next one."""
        period = self._period
        return [
            r
            for r in self._stays.get(storage, ())
            if any(r.start <= begin + turn and end + turn <= r.end for turn in (-period, 0, period))
        ]

    def _base(self, storage: str, stays: Iterable[Residency], lo: int, hi: int, who: str) -> int:
        """The address byte 0 has for whoever uses bytes [lo, hi) of `storage`."""
        stays = sorted((r for r in stays if r.lo < hi and lo < r.hi), key=lambda r: r.lo)
        covered = lo
        for r in stays:
            if r.lo > covered:
                break
            covered = max(covered, r.hi)
        if covered < hi:
            raise PlanMismatchError(
                f"{who} needs bytes [{lo}, {hi}) of '{storage}', but from byte {covered} on they are not in "
                f"'{self._tier}'; plan again"
            )
        bases = {r.base for r in stays}
        if len(bases) > 1:
            raise PlanMismatchError(
                f"{who} finds '{storage}' in pieces at bases {sorted(bases)} of '{self._tier}'; plan again"
            )
        return bases.pop()
