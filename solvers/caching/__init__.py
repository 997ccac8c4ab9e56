"""Caches of objects asked for in sets: policies, bounds on loads and on waits, and placement over tiers."""
