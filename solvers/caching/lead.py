"""Who leads: forecasts that may mislead, or LRU beside them.

The combination of Fiat et al. ('Competitive paging algorithms', J. Algorithms 12, 1991) follows one of two policies and
changes over when that one has lost so much more than the other. What forecasts load ahead may lose what their evictions
win, again and again: so they must win twice as much as before to lead again each time that they have lost the lead,
until they have won that much while they led. What is lost to LRU is `slack` for each time, and so it grows with the
logarithm of a trace's length at the most.
"""

from __future__ import annotations

from typing import Any

from ..jit import compiled

STATE = 4
"""Entries of a state (float64): who leads, 0.0 forecasts or 1.0 LRU; what that one has lost to the other and not won
back; the times `slack` that forecasts must win to lead again, 0 for once; what they have won since they lead."""


@compiled
def follow(state: Any, forecasts: Any, lru: Any, slack: Any) -> Any:
    """Tell `state` what an event has cost both; who leads from now on."""
    led = state[0] == 0.0
    debt = state[1] + (forecasts - lru if led else lru - forecasts)
    need = slack * max(1.0, state[2])
    if debt > (slack if led else need):
        if led:
            state[2] = min(2.0 * max(1.0, state[2]), 2.0**60)
        state[0] = 1.0 if led else 0.0
        state[1] = 0.0
        state[3] = 0.0
    elif debt < 0.0:  # credit is not saved up: what was good once may become bad
        state[1] = 0.0
        if led:
            state[3] -= debt
            if state[3] > need:
                state[2] = 0.0
                state[3] = 0.0
    else:
        state[1] = debt
    return state[0]
