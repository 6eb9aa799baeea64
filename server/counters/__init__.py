"""Accounts, months and calendars, as this process knows them.

Imports ``runtime``, ``transport`` and ``access``.
"""
