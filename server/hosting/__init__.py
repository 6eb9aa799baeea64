"""Runs a process: the app, the server, workers, the metrics port.

Imports every other room; only the commands import this one.
"""
