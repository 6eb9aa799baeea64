"""Runs a process on a machine: the app, the server, its workers, the metrics port.

Imports every other room; only the commands import this one.
"""
