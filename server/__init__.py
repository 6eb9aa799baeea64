"""Who speaks: sockets and HTTP, the timers of a process, and the only place with a clock."""
