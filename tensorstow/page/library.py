"""Plotly's script, as the package brings it: pages hold it, so that they open without a network."""

from __future__ import annotations


def plotly_script() -> str:
    """The minified JavaScript."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
