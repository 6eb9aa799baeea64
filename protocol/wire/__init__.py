"""The exchange: messages, their fields and bytes, credits and errors.

Imports the limits.
"""
