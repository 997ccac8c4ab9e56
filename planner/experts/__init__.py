"""Mixture-of-experts routing: traces, what they say, how caching policies fare, and where experts should live."""
