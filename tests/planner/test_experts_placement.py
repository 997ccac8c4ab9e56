"""Where experts live: placement over tiers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensorstow.ir.errors import InfeasibleError, InputError
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.planner.experts.placement import Claim, Home, place_experts

MACHINE = Machine(
    "toy",
    (
        Tier("hbm", TierKind.HBM, 1000),
        Tier("dram", TierKind.DRAM, 2000),
        Tier("ssd", TierKind.SSD, 100_000),
    ),
    (Link("dram", "hbm", 1e9), Link("hbm", "dram", 1e9), Link("ssd", "dram", 1e8), Link("dram", "ssd", 1e8)),
    (Unit("gpu", "hbm", (("bfloat16", 1e13),), 1e12), Unit("cpu", "dram", (("bfloat16", 1e11),), 2e9)),
)


def test_the_most_used_experts_live_nearest_and_others_are_computed_beside() -> None:
    sizes = np.full((1, 40), 100, np.int64)
    uses = (40.0 - np.arange(40.0))[None]
    placed = place_experts(MACHINE, sizes, uses)
    assert placed.experts[:10] == (Home("hbm"),) * 10
    # Reading 100 bytes takes the processor 50 ns, moving them 100: what lies in DRAM is computed there.
    assert placed.experts[10:30] == (Home("dram", "cpu"),) * 20
    assert placed.experts[30:] == (Home("ssd"),) * 10
    assert placed.gap <= 1e-6
    assert placed.nbytes == {"hbm": 1000, "dram": 2000, "ssd": 1000}


def test_a_kv_cache_competes_for_the_bytes() -> None:
    sizes = np.full((1, 40), 100, np.int64)
    uses = np.full((1, 40), 1.0)
    dear = Claim("kv", 600, {"hbm": 0.0, "dram": 1e6})
    placed = place_experts(MACHINE, sizes, uses, claims=(dear,))
    assert placed.claims["kv"] == Home("hbm")
    assert sum(home == Home("hbm") for home in placed.experts) == 4
    cheap = Claim("kv", 600, {"hbm": 0.0, "dram": 1.0})
    assert place_experts(MACHINE, sizes, uses, claims=(cheap,)).claims["kv"] == Home("dram")


def test_placements_that_cannot_be() -> None:
    sizes = np.full((2, 3), 60_000, np.int64)
    with pytest.raises(InfeasibleError, match="give a tier more"):
        place_experts(MACHINE, sizes, np.ones((2, 3)))
    tiers = (Tier("hbm", TierKind.HBM, 150), Tier("dram", TierKind.DRAM, 150))
    halves = replace(MACHINE, tiers=tiers, links=MACHINE.links[:2])
    for three in ([[100, 100, 100]], [[99, 100, 101]]):  # as many bytes as the tiers have, and two of them fit nowhere
        with pytest.raises(InfeasibleError, match="give a tier more") as caught:
            place_experts(halves, np.array(three, np.int64), np.ones((1, 3)))
        assert caught.value.smallest_nbytes is None
    with pytest.raises(InputError, match="no unit 'tpu'"):
        place_experts(MACHINE, sizes, np.ones((2, 3)), unit="tpu")
    with pytest.raises(InputError, match="must both be"):
        place_experts(MACHINE, sizes, np.ones((2, 2)))
    with pytest.raises(InputError, match="may lie in"):
        place_experts(MACHINE, sizes, np.ones((2, 3)), claims=(Claim("kv", 1, {"tape": 1.0}),))
