"""The serving floor: sockets, HTTP, timers, and the only code that reads a clock."""
