"""The commands of the measurements: ``python -m tests.benchmarks ticks`` and the others."""

import json
import logging
import subprocess
import sys
from typing import Annotated

import structlog
import typer
import uvloop

from tests.benchmarks import anonymous as unasked
from tests.benchmarks import clock as shown
from tests.benchmarks import machine
from tests.benchmarks import neighbours as beside
from tests.benchmarks import reconnect as returning
from tests.benchmarks import spends as spending
from tests.benchmarks import stops as stopped
from tests.benchmarks.memory import CONTESTANTS, SESSIONS, bytes_per_session, bytes_per_socket
from tests.benchmarks.ticks import compare, report, sweep

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _prepare() -> None:
    machine.pin(0)
    machine.raise_descriptor_limit()


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter("numbers with commas between them") from None
    if min(counts) < 1:
        raise typer.BadParameter("at least one socket")
    return counts


@commands.command()
def ticks(
    sockets: Annotated[
        str, typer.Option(help="Sockets of each contestant; several numbers: a sweep.")
    ] = "1000",
    seconds: Annotated[float, typer.Option(help="For each contestant, or number.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Pushes distinct ticks as fast as possible, beside other ways of sending."""
    _prepare()
    counts = _counts(sockets)
    measured = (
        compare(counts[0], seconds, rounds) if len(counts) == 1 else sweep(counts, seconds, rounds)
    )
    print(report(uvloop.run(measured)))


@commands.command()
def memory(
    sockets: Annotated[int, typer.Option(min=1)] = 5000,
    idle: Annotated[float, typer.Option(help="Seconds that live sessions are left alone.")] = 12.0,
    only: Annotated[str, typer.Option(help="One contestant, in this process.")] = "",
) -> None:
    """Measures the server's memory for each idle socket and each session."""
    if only == SESSIONS:
        _quiet()
        measured, what = uvloop.run(bytes_per_session(sockets, idle)), "session"
    elif only:
        _prepare()
        measured, what = uvloop.run(bytes_per_socket(only, sockets)), "socket"
    if only:
        print(f"{only:<24}{measured:>8,.0f} bytes/{what}")
        return
    print(machine.describe(), flush=True)
    for name in (*CONTESTANTS, SESSIONS):
        command = [sys.executable, "-m", "tests.benchmarks", "memory", "--only", name]
        arguments = ["--sockets", str(sockets), "--idle", str(idle)]
        subprocess.run([*command, *arguments], check=True)


@commands.command()
def spends(
    concurrency: Annotated[
        str, typer.Option(help="How many spend at once; several numbers: one after the other.")
    ] = "1,64",
    seconds: Annotated[float, typer.Option(help="For each contestant, at each number.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
) -> None:
    """Measures spends beside their least possible cost.

    The least cost is one step in Redis and one row in Postgres.
    """
    _quiet()
    print("\n".join(uvloop.run(spending.compare(_counts(concurrency), seconds, rounds))))


@commands.command()
def reconnect(
    clients: Annotated[int, typer.Option(min=2)] = 5000,
    processes: Annotated[int, typer.Option(min=2)] = 3,
    seconds: Annotated[float, typer.Option(help="How long sessions run before the kill.")] = 12.0,
) -> None:
    """Measures how the clients of a killed server process reconnect.

    They reconnect to the other processes.
    """
    _quiet()
    print("\n".join(uvloop.run(returning.measure(clients, processes, seconds))))


@commands.command()
def stops(
    ticking: Annotated[int, typer.Option(min=1)] = 2000,
    stopping: Annotated[int, typer.Option(min=1)] = 500,
    seconds: Annotated[float, typer.Option(help="Over which their limits are spread.")] = 10.0,
) -> None:
    """Measures how late sessions stop at their limits.

    Many other sessions tick at the same time.
    """
    _quiet()
    print("\n".join(uvloop.run(stopped.measure(ticking, stopping, seconds))))


@commands.command()
def anonymous(
    times: Annotated[int, typer.Option(min=1, help="Requests for each path.")] = 200,
) -> None:
    """Measures the loop's time for a request without a token.

    The command requests every path that needs no token.
    """
    _quiet()
    print("\n".join(uvloop.run(unasked.measure(times))))


@commands.command()
def clock(
    seconds: Annotated[int, typer.Option(min=1, help="Until the session's limit.")] = 60,
    slower: Annotated[float, typer.Option(min=1, help="How many times the processor is.")] = 6.0,
    latency: Annotated[int, typer.Option(min=0, help="Milliseconds of a round trip.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Measures how far a page's clock is from the server's.

    The page runs in Chromium, as the machine is and on a slower one.
    """
    _quiet()
    result = uvloop.run(shown.measure(seconds, slower, latency))
    print(json.dumps(result) if as_json else "\n".join(shown.table(result)))


@commands.command()
def neighbours(
    sessions: Annotated[
        str, typer.Option(help="Sessions of one account; several numbers: one after the other.")
    ] = "1,64,256",
) -> None:
    """Measures what one account's sessions do to others.

    All sessions of the account act together.
    """
    _quiet()

    async def run() -> None:
        async for line in beside.measure(_counts(sessions)):
            print(line, flush=True)

    uvloop.run(run())


def _quiet() -> None:
    """Logs errors only, and not among the figures."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    commands()
