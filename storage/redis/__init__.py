"""The live state: a Lua file for each atomic step, keys, encoding, Pub/Sub, the outbox.

Imports ``rows``, and nothing of ``postgres``.
"""
