"""Money in and out: credit grants, allotments, spends, holds.

Imports ``sessions`` and what lies below it.
"""
