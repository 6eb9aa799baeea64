"""Authentication and authorisation: tokens, keys of issuers, rate limits.

Imports ``runtime`` and ``transport``.
"""
