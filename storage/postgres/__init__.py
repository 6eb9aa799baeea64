"""The record: the pool, queries in SQL files, the schema and its migrations.

This package imports ``rows``, and nothing of ``redis``.
"""
