"""What endpoints share: requests, problems, idempotency, descriptions.

Imports ``usage`` and what lies below it.
"""
