"""Bytes in and out: safe HTTP and WebSocket, pushes, pings.

Imports ``runtime``.
"""
