"""The meter and its parts: states, transitions, steps, quota.

This package imports only ``wire`` and the limits.
"""
