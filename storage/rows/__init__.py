"""What the record answers: frozen values, with instants as epoch milliseconds.

Most are decoded from one JSON column that a query in ``storage/postgres/sql`` makes, so the
names here are the names there. Imports nothing of ``storage``.
"""
