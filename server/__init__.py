"""The serving floor: sockets, HTTP, timers.

Only this floor reads a clock.
"""
