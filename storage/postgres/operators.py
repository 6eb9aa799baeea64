"""The record of operators: names, sessions of cookies, and the log.

The statements are ``storage/postgres/sql/*.sql``. Instants are epoch milliseconds.
"""

from storage import limits as storage_limits
from storage.postgres import columns
from storage.postgres.database import SQL, Connection, Database
from storage.rows.operators import (
    ActionIntent,
    LogFilter,
    LoggedAction,
    OperatorRole,
    OperatorRow,
    OperatorSession,
    Outcome,
)


class OperatorRecords(Database):
    """The queries about operators.

    Make one with ``over``: the pool remains the record's.
    """

    @classmethod
    def over(cls, database: Database) -> "OperatorRecords":
        """Returns the queries over ``database``'s pool, which it also closes."""
        return cls(database._pool, database._timeout_s)

    # Operators

    async def add(self, name: str, role: OperatorRole, password_hash: str | None) -> bool:
        """Makes an operator. False: the name is taken, and nothing has changed."""
        made = await self._value("put_operator", name, role, password_hash, again=False)
        return made is not None

    async def operator(self, name: str) -> OperatorRow | None:
        """Returns the operator of that name, or None."""
        return await self._maybe("operator", OperatorRow, name)

    async def operators(self, after_name: str, limit: int) -> tuple[OperatorRow, ...]:
        """Returns a page of operators by name, after a name."""
        return await self._rows("operators", OperatorRow, after_name, limit)

    async def set_password(self, name: str, password_hash: str | None) -> bool:
        """Sets an operator's password, and ends the sessions. False: there is none."""
        return await self._value("set_operator_password", name, password_hash) is not None

    async def remove(self, name: str) -> bool:
        """Removes an operator and ends the sessions. False: there was none."""
        return (await self._execute("remove_operator", name)).endswith(" 1")

    # Sessions of cookies

    async def open_session(
        self,
        secret_hash: bytes,
        session: OperatorSession,
        now_ms: int,
        *,
        operator: OperatorRow | None = None,
    ) -> bool:
        """Opens a session, and deletes what has ended.

        With an ``operator`` the session has the operator's role from then on, and not its own
        ``scope``. False: the operator is gone, or has another password. An actor keeps the newest
        ``OPERATOR_SESSIONS_MAX`` sessions.
        """
        most, batch = storage_limits.OPERATOR_SESSIONS_MAX, storage_limits.PAGE_ROWS_MAX
        arguments = (
            secret_hash, session.actor, session.via, operator.name if operator else None,
            None if operator else session.scope, session.org_id, session.expires_at,
            operator.password_hash if operator else None,
        )  # fmt: skip

        async def open_it(connection: Connection) -> bool:
            async with connection.transaction():
                opened = await connection.fetchval(SQL["open_operator_session"], *arguments)
                pruned = (session.actor, most, now_ms, batch, arguments[3], session.org_id)
                await connection.execute(SQL["prune_operator_sessions"], *pruned)
                return opened is not None

        return await self._run(open_it, again=False)

    async def session(self, secret_hash: bytes, now_ms: int) -> OperatorSession | None:
        """Returns the session of a cookie; None: it has ended."""
        return await self._maybe("operator_session", OperatorSession, secret_hash, now_ms)

    async def close_session(self, secret_hash: bytes) -> None:
        """Ends a session, from this moment on every process."""
        await self._execute("close_operator_session", secret_hash)

    # The log

    async def begin_action(self, intent: ActionIntent) -> None:
        """Writes an intent; one that is there already stays as it is.

        Call this before anything is done, then ``finish_action``.
        """
        await self._execute(
            "begin_action", intent.action_id, intent.at, intent.actor, intent.via, intent.action,
            intent.target, intent.tenant, columns.text_value(intent.reason),
            columns.json_value(intent.before), intent.request_id,
        )  # fmt: skip

    async def finish_action(
        self, action_id: str, at: int, outcome: Outcome, code: str | None, after: object
    ) -> None:
        """Writes the outcome of an intent.

        An action has one outcome, and a repeated attempt only a weightier one: ``done`` outweighs
        ``refused``, which outweighs ``failed``. Anything else changes nothing.
        """
        written = columns.json_value(after)
        await self._execute("finish_action", action_id, at, outcome, code, written)

    async def log(
        self, wanted: LogFilter, before_position: int | None, limit: int
    ) -> tuple[LoggedAction, ...]:
        """Returns a page of the log, newest first, below a position.

        A position of None begins with the newest row.
        """
        filters = (
            wanted.actor, wanted.action, wanted.target, wanted.outcome, wanted.from_at,
            wanted.to_at,
        )  # fmt: skip
        return await self._rows("operators_log", LoggedAction, before_position, limit, *filters)
