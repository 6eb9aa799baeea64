"""The base of every room: clock, timers, metrics, logs, settings.

Imports no other room of the server.
"""
