"""The meter and what it is made of: states, transitions, steps, quota.

Imports ``wire`` and the limits.
"""
