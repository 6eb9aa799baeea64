"""The commands: ``python -m server web|flush|all|migrate|audit|token|calls|operator``."""

import asyncio
import contextlib
import datetime
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated
from urllib.parse import urlsplit

import asyncpg
import msgspec
import structlog
import typer
import uvloop
from redis.exceptions import RedisError

from protocol.wire.codec import explain
from protocol.wire.money import format_credits
from server import limits as server_limits
from server.access.tokens import mint_token
from server.calls.mapping import EACH, KIND_DEFAULT, CallPlan
from server.calls.parked import failed_facts, parked_participants
from server.calls.replay import ReplayResult, pause, replay
from server.hosting.operator_commands import operator_commands
from server.hosting.serving import serve
from server.hosting.supervisor import Supervisor
from server.hosting.worker import Worker
from server.runtime import logs
from server.runtime.rate_card_file import load_rate_card
from server.runtime.secrets import with_secrets
from server.runtime.settings import ConfigurationError, Settings, load_settings
from server.runtime.start_checks import doubts, exposures
from storage.audit import Audit, audit_live, audit_record
from storage.embedded import EngineError, start_engines
from storage.flush.partitions import run_flusher
from storage.postgres.calls import CallBill, CallRecords
from storage.postgres.migrate import MigrationError, migrate_database
from storage.postgres.records import Records, UnavailableError
from storage.redis.keys import Keys
from storage.redis.live import Live, LiveError, connect
from storage.rows.findings import AuditFinding

log = structlog.get_logger()
STOPPERS = (
    ConfigurationError,
    EngineError,
    LiveError,
    MigrationError,
    UnavailableError,
    OSError,
    RedisError,
    asyncpg.PostgresError,
)
"""Errors in a process's surroundings, each reported in one line.

The operator can mend their causes: settings, Redis, Postgres, the network.
"""

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@contextlib.asynccontextmanager
async def engines(settings: Settings) -> AsyncIterator[Settings]:
    """Gives the settings with the URLs of Redis and Postgres.

    A URL that the settings lack is that of an embedded engine, which runs until the context ends.
    """
    redis, postgres = settings.redis_url is None, settings.database_url is None
    if not redis and not postgres:
        yield settings
        return
    async with await start_engines(settings.data_dir, redis=redis, postgres=postgres) as found:
        changes = {}
        if redis:
            changes["redis_url"] = found.urls.redis
        if postgres:
            changes["database_url"] = found.urls.postgres
        yield settings.model_copy(update=changes)


async def flush(settings: Settings, stop: asyncio.Event) -> None:
    """Moves the outbox to Postgres until ``stop`` is set.

    Then it moves the rest.
    """
    assert settings.redis_url is not None
    assert settings.database_url is not None
    records = await Records.connect(settings.database_url)
    try:
        await run_flusher(settings.redis_url, records, settings.partitions, stop)
    finally:
        await records.close()


def _run(settings: Settings, work: Callable[[Settings], Awaitable[None]], *, migrate: bool) -> None:
    """Starts missing engines and runs ``work``; reports an error in one line."""

    async def main() -> None:
        async with engines(settings) as ready:
            assert ready.database_url is not None
            if migrate:
                await _migrate(ready.database_url)
            await work(ready)

    try:
        uvloop.run(main())
    except STOPPERS as error:
        typer.echo(f"taximeter: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


async def _migrate(database_url: str) -> None:
    try:
        for name in await migrate_database(database_url):
            log.info("migrated", migration=name)
    except (OSError, asyncpg.PostgresError) as error:
        # The URL may contain a user and a password, which the error must not show.
        place = urlsplit(database_url)
        where = f"{place.hostname or 'localhost'}:{place.port or 5432}{place.path}"
        raise ConfigurationError(f"the Postgres at {where} cannot be used: {error}") from error


def _settings(*, secrets: bool, quietly: bool = False) -> Settings:
    try:
        settings = load_settings()
        logs.configure(settings.log_format)
        if secrets:
            settings = with_secrets(settings)
        elif problems := exposures(settings):
            raise ConfigurationError(*problems)
        load_rate_card(settings.rates)
    except ConfigurationError as error:
        for problem in error.problems:
            typer.echo(f"taximeter: {problem}", err=True)
        sys.exit(1)
    for doubt in () if quietly else doubts(settings):
        log.warning("doubtful_setting", doubt=doubt)
    return settings


@commands.command()
def web(
    workers: Annotated[
        int,
        typer.Option(
            envvar="WEB_CONCURRENCY",
            min=1,
            max=server_limits.WORKERS_MAX,
            help="Server processes, one for each core.",
        ),
    ] = 1,
) -> None:
    """Serves sockets and HTTP."""
    settings = _settings(secrets=True)

    async def work(settings: Settings) -> None:
        await (serve(settings) if workers == 1 else Supervisor(settings, workers).run())

    _run(settings, work, migrate=settings.is_development)


@commands.command(hidden=True)
def worker(index: int) -> None:
    """Serves as one process of ``web --workers``, which starts this command."""
    settings = _settings(secrets=True, quietly=True)
    _run(settings, lambda ready: serve(ready, worker=Worker(index)), migrate=False)


@commands.command("flush")
def flush_command() -> None:
    """Brings minutes from Redis to Postgres."""

    async def work(settings: Settings) -> None:
        stop, interrupted = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)

        def interrupt() -> None:
            interrupted.set()
            stop.set()

        loop.add_signal_handler(signal.SIGINT, interrupt)
        await flush(settings, stop)
        if interrupted.is_set():
            raise KeyboardInterrupt

    settings = _settings(secrets=False)
    _run(settings, work, migrate=settings.is_development)


@commands.command("all")
def everything() -> None:
    """Serves and flushes in one process: for development and small installations."""

    async def work(settings: Settings) -> None:
        stop = asyncio.Event()
        flusher = asyncio.create_task(flush(settings, stop))
        try:
            await serve(settings, flusher)
        finally:
            stop.set()
            await flusher

    settings = _settings(secrets=True)
    _run(settings, work, migrate=settings.is_development)


@commands.command()
def migrate() -> None:
    """Brings the database's schema up to date."""

    async def work(_: Settings) -> None:
        """Does nothing: ``_run`` has made the migration before."""

    _run(_settings(secrets=False), work, migrate=True)


@commands.command()
def audit() -> None:
    """Checks that credits and minutes add up; prints each finding.

    Exits 1 when there is a finding. Exits 2 when there is no finding but Redis could not be
    compared with the record.
    """
    found: list[AuditFinding] = []
    compared: Audit | None = None

    async def work(settings: Settings) -> None:
        nonlocal compared
        assert settings.database_url is not None
        assert settings.redis_url is not None
        records = await Records.connect(settings.database_url)
        live = Live(connect(settings.redis_url), Keys(settings.partitions), "audit")
        try:
            found.extend(await audit_record(records))
            compared = await audit_live(live, records)
            found.extend(compared.findings)
            log.info("audited", accounts=compared.accounts, restless=compared.restless)
        except LiveError as error:
            log.warning("redis_not_audited", error=str(error))
        finally:
            await live.redis.aclose()
            await records.close()

    _run(_settings(secrets=False), work, migrate=False)
    for finding in found:
        typer.echo(f"{finding.rule}: {finding.tenant} {finding.subject}: {finding.detail}")
    if found:
        typer.echo(f"{len(found)} findings")
        sys.exit(1)
    if compared is None:
        typer.echo("the record adds up; what is in Redis was not compared with it")
        sys.exit(2)
    typer.echo("everything adds up")


commands.add_typer(
    operator_commands(
        lambda work: _run(_settings(secrets=False, quietly=True), work, migrate=False)
    ),
    name="operator",
)

calls_commands = typer.Typer(no_args_is_help=True, help="Calls of outside providers.")
commands.add_typer(calls_commands, name="calls")


def _with_calls(work: Callable[[CallRecords], Awaitable[None]]) -> None:
    """Runs ``work`` with the record of calls."""

    async def connected(settings: Settings) -> None:
        assert settings.database_url is not None
        records = await Records.connect(settings.database_url)
        try:
            await work(CallRecords.over(records))
        finally:
            await records.close()

    _run(_settings(secrets=False, quietly=True), connected, migrate=False)


@calls_commands.command()
def parked() -> None:
    """Lists participants whom nothing says how to bill, and facts that fail."""

    async def work(records: CallRecords) -> None:
        async for one in parked_participants(records):
            typer.echo(
                f"{one.provider} {one.call_id} run {one.call_session}: "
                f"{one.participant!r} is parked, {one.parked_because}"
            )
        async for fact in failed_facts(records):
            whose = "" if fact.participant is None else f" of {fact.participant!r}"
            typer.echo(
                f"{fact.provider} {fact.call_id} run {fact.call_session}: "
                f"{fact.kind!r}{whose} is parked after {fact.attempts} attempts, {fact.error}"
            )

    _with_calls(work)


@calls_commands.command("retry")
def retry_call(
    call: Annotated[str, typer.Argument(help="The call. Stream: the cid; LiveKit: the sid.")],
    provider: Annotated[str, typer.Option(help="The call's provider: stream, livekit.")],
) -> None:
    """Lets what is parked of a call be applied again.

    A process that serves applies it within seconds.
    """

    async def work(records: CallRecords) -> None:
        facts = await records.retry_facts(provider, call, time.time_ns() // 1_000_000)
        typer.echo(f"{facts} facts of {provider} {call} are applied again")

    _with_calls(work)


@calls_commands.command("map")
def map_call(
    call: Annotated[str, typer.Argument(help="The call. Stream: the cid; LiveKit: the sid.")],
    provider: Annotated[str, typer.Option(help="The call's provider: stream, livekit.")],
    participant: Annotated[
        list[str] | None,
        typer.Option(help="A provider's user id, and ours: p1=ann. May be repeated."),
    ] = None,
    payer: Annotated[str, typer.Option(help="each, host, or a user of ours.")] = EACH,
    host: Annotated[str | None, typer.Option(help="The host, by the provider's user id.")] = None,
    org: Annotated[str | None, typer.Option(help="The organisation of all.")] = None,
    kind: Annotated[str, typer.Option(help="A kind of the rate card.")] = KIND_DEFAULT,
) -> None:
    """Says whose a call is.

    What was parked of it is billed from its first fact.
    """
    plan = {
        "participants": {
            name: {"user_id": user}
            for name, _, user in (one.rpartition("=") for one in participant or ())
        },
        "payer": payer,
        "kind": kind,
        **({"host": host} if host else {}),
        **({"org_id": org} if org else {}),
    }

    async def work(records: CallRecords) -> None:
        try:
            checked = msgspec.convert(plan, CallPlan)
        except msgspec.ValidationError as error:
            raise ConfigurationError(explain(error)) from None
        encoded = msgspec.json.encode(checked).decode()
        version = await records.put_plan(provider, call, encoded, time.time_ns() // 1_000_000)
        typer.echo(f"{provider} {call} has a plan, version {version}")

    _with_calls(work)


@calls_commands.command("replay")
def replay_calls(
    from_: Annotated[str, typer.Option("--from", help="2026-12-01T00:00:00Z, by arrival.")],
    to: Annotated[str, typer.Option("--to", help="The instant after the last.")],
) -> None:
    """Applies facts of a span again, and compares the bills.

    Exits 1 when a bill differs afterwards. A process that serves applies them, so one has to run.
    """
    result: ReplayResult | None = None

    async def work(records: CallRecords) -> None:
        nonlocal result
        span = (_instant_ms(from_), _instant_ms(to))
        result = await replay(records, span, time.time_ns() // 1_000_000, pause)

    _with_calls(work)
    assert result is not None
    for before, after in result.changed:
        typer.echo(f"{before.tenant} {before.session_id}: {_bill(before)}, now {_bill(after)}")
    typer.echo(
        f"{result.facts} facts applied again, {result.sessions} bills compared, "
        f"{len(result.changed)} differ"
    )
    if result.waiting:
        typer.echo(f"{result.waiting} facts still wait: no process applies them", err=True)
    if result.changed or result.waiting:
        sys.exit(1)


def _bill(bill: CallBill | None) -> str:
    if bill is None:
        return "none"
    return f"{bill.elapsed_ms} ms, {bill.minutes} minutes, {format_credits(bill.charged_micros)}"


def _instant_ms(text: str) -> int:
    """Epoch milliseconds of an instant as an operator writes it."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text}: write 2026-12-01T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ConfigurationError(f"{text}: name the time zone, such as Z for UTC")
    return int(moment.timestamp() * 1000)


@commands.command()
def token(
    sub: Annotated[str, typer.Option(help="The user.")],
    org: Annotated[str | None, typer.Option(help="The user's organisation.")] = None,
    scope: Annotated[str | None, typer.Option(help="ops, ops:read or org:read.")] = None,
    ttl: Annotated[int, typer.Option(help="Seconds until it expires.")] = 3600,
    account: Annotated[str | None, typer.Option(help="The credit account; the user's own.")] = None,
    session: Annotated[
        list[str] | None, typer.Option(help="A session that it may start; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="A kind that it may start; may be repeated.")
    ] = None,
    counterpart: Annotated[
        list[str] | None, typer.Option(help="A counterpart that it may name; may be repeated.")
    ] = None,
) -> None:
    """Prints a token."""
    settings = _settings(secrets=True)
    try:
        minted = mint_token(
            settings,
            sub,
            org=org,
            scope=scope,
            ttl_seconds=ttl,
            account=account,
            sessions=session,
            kinds=kind,
            counterparts=counterpart,
        )
    except (ConfigurationError, ValueError) as error:
        typer.echo(f"taximeter: {error}", err=True)
        sys.exit(1)
    typer.echo(minted)


if __name__ == "__main__":
    commands()
