"""The server's side of a client: connections, session starts, heartbeats.

Imports the process and the rooms that it is made of.
"""
