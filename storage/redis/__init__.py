"""The live state: Lua steps, keys, encoding, Pub/Sub and the outbox.

This package imports ``rows``, and nothing of ``postgres``.
"""
