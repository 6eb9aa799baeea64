"""The record's answers: frozen values, with instants as epoch milliseconds.

A query in ``storage/postgres/sql`` makes one JSON column for most of them, so the names here are
the names there. This package imports nothing of ``storage``.
"""
