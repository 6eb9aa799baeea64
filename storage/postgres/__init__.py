"""The record: the pool, queries in SQL files, the schema and its migrations.

Imports ``rows``, and nothing of ``redis``.
"""
