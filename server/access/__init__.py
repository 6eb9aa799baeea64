"""Who asks, and how much they may: tokens, keys of issuers, rate limits.

Imports ``runtime`` and ``transport``.
"""
