"""The way from the outbox in Redis to the record in Postgres.

Imports ``faults`` and what lies below it.
"""
