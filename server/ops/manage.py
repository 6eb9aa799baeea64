"""Operators by command: add, list, remove, and a new password."""

import getpass
import secrets

from protocol.wire.fields import ID_TEXT, is_id
from server.access.passwords import check_password, hash_password
from server.access.principals import OPERATOR_SCOPE, Principal
from server.ops.log import OperatorsLog
from storage import limits as storage_limits
from storage.postgres.operators import OperatorRecords
from storage.rows.operators import OperatorRole, OperatorRow


class ManageOperators:
    """The operators of an installation, for who has its database."""

    def __init__(self, records: OperatorRecords, log: OperatorsLog) -> None:
        self.records = records
        self._log = log

    async def add(self, name: str, role: OperatorRole, password: str | None) -> None:
        """Adds an operator; without a password a trusted proxy must name them.

        Raises ValueError for a name or password that cannot be, and for a name that is taken.
        """
        if not is_id(name):
            raise ValueError(f"the name must be {ID_TEXT}")
        password_hash = _hashed(name, password)
        action_id = await self._begin("operator_add", name)
        if not await self.records.add(name, role, password_hash):
            await self._log.finish(action_id, "refused", "name_taken", None)
            raise ValueError(f"there is an operator {name} already")
        await self._log.finish(action_id, "done", None, {"role": role})

    async def set_password(self, name: str, password: str | None) -> None:
        """Sets or takes away a password, and ends the operator's sessions.

        Raises ValueError for a password that cannot be, and for an unknown name.
        """
        password_hash = _hashed(name, password)
        action_id = await self._begin("operator_password", name)
        done = await self.records.set_password(name, password_hash)
        await self._finish(action_id, name, done=done)

    async def remove(self, name: str) -> None:
        """Removes an operator, and ends the sessions.

        Raises ValueError for an unknown name.
        """
        action_id = await self._begin("operator_remove", name)
        await self._finish(action_id, name, done=await self.records.remove(name))

    async def all(self) -> list[OperatorRow]:
        """Every operator, by name."""
        found: list[OperatorRow] = []
        limit = storage_limits.PAGE_ROWS_MAX
        while page := await self.records.operators(found[-1].name if found else "", limit):
            found += page
        return found

    async def _begin(self, action: str, name: str) -> str:
        action_id = f"act:{secrets.token_hex(16)}"
        operator = await self.records.operator(name)
        before = None if operator is None else {"role": operator.role}
        await self._log.begin(
            Principal(
                kind="operator",
                user_id=_user(),
                scopes=frozenset({OPERATOR_SCOPE}),
                via="command",
            ),
            action,
            f"operator:{name}",
            action_id=action_id,
            request_id="",
            before=before,
        )
        return action_id

    async def _finish(self, action_id: str, name: str, *, done: bool) -> None:
        if not done:
            await self._log.finish(action_id, "refused", "unknown_operator", None)
            raise ValueError(f"there is no operator {name}")
        await self._log.finish(action_id, "done", None, None)


def _hashed(name: str, password: str | None) -> str | None:
    if password is None:
        return None
    check_password(name, password)
    return hash_password(password)


def _user() -> str:
    """The account of the machine that runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
