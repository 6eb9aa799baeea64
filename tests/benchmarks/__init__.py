"""Measurements of the server, each a command: ``python -m tests.benchmarks --help``.

A figure is only worth something beside another that was taken on the same machine in the
same minute. So contestants take turns, in rounds, and what is reported is the median and
the ratio to a yardstick.
"""
