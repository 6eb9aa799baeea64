"""A user's month, and the minutes that clients report.

Imports ``gateway``, the process, and what lies below.
"""
