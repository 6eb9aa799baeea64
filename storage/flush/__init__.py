"""The way from the outbox in Redis to the record in Postgres.

This package imports ``faults`` and what lies below it.
"""
