"""The sessions of this process: their shells, their registry, their steps.

Imports ``counters`` and what lies below it.
"""
