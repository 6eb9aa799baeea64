"""Bytes in and out: HTTP and WebSocket made safe and fast, pushes, pings.

Imports ``runtime``.
"""
