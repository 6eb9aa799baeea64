"""Operators: how they sign in, and the log of what they do."""
