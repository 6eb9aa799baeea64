"""The live state: a Lua file for each atomic step, keys, encoding, Pub/Sub, the outbox.

This package imports ``rows``, and nothing of ``postgres``.
"""
