"""The exchange: messages, their fields and bytes, credits and errors.

This package imports only the limits.
"""
