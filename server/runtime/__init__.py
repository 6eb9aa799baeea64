"""What every part runs on: clock, timers, metrics, logs, settings.

Imports no other room of the server.
"""
