"""What endpoints share: requests, problems, idempotency, descriptions.

Imports ``usage`` and the rooms below it.
"""
