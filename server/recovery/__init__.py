"""Processes that die and data that Redis loses: membership, sweeper, orphans, reassertion.

Imports ``credits`` and what lies below it.
"""
