"""The record: pool, queries in SQL files, schema and migrations.

This package imports ``rows``, and nothing of ``redis``.
"""
