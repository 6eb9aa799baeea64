"""Measurements of the server, each a command: ``python -m tests.benchmarks --help``.

A figure has a meaning only beside another that was taken on the same machine in the same minute.
Therefore contestants take turns, in rounds, and the report has the median and the ratio to a
yardstick.
"""
