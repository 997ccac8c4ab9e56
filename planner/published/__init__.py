"""Strategies from the literature, re-implemented on our instances: each module names its source and what it adapts."""
