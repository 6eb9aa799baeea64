"""The backends of a virtual world: grants, spends, holds and adjustments.

A backend without an answer does not know whether its request was done. It repeats the request under
the same id until there is an answer, which must say what was done. The money client keeps the
outcome of each transfer.
"""

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol.metering.records import EntryPosted
from protocol.wire.errors import ProtocolError, ServiceError
from server.credits.outcomes import Exceeds, Held, HoldGone, Limited, Posted, Short, Spent, Voided
from storage import limits as storage_limits
from storage.redis.live import LiveError
from storage.redis.spending import AccountName
from storage.rows.accounts import BeforeOperation
from tests.simulation import digits
from tests.simulation.people import ALLOTMENTS, Person
from tests.simulation.processes import ServerHost
from tests.simulation.state import State, look
from tests.simulation.virtual import START_AT
from tests.simulation.world import World

MONTH_MS = 31 * 24 * 3_600_000


@dataclass
class Transfer:
    """An operation that moves money, under an id."""

    kind: str
    person: Person
    entry_id: str
    micros: int
    """The requested amount, positive; signed for an adjustment."""
    hold_id: str = ""
    ttl_ms: int = 0
    form: int = 0
    """The form in which the amount is written as text (``digits``); 0: as a number."""
    often: int | None = None
    """The monthly limit of its operation; None: no limit."""
    tier: str = ""
    """For an allotment: the tier that the process believes the account to have."""
    at: int = 0
    state: str = "unknown"
    """``unknown`` until an answer comes, then ``done`` or ``refused``."""
    moved_micros: int = 0
    """What the transfer adds to the balance, once it is done."""

    @property
    def operation(self) -> str | None:
        """The operation's name; none for an amount that is written as text."""
        return None if self.form else {"spend": "sketch", "hold": "film"}.get(self.kind)

    @property
    def would_move(self) -> int:
        """What the transfer adds to the balance if it was done."""
        match self.kind:
            case "pay":
                return self.micros
            case "spend" | "post":
                return -self.micros
        return 0


class MoneyClient:
    """Moves money through one process or another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.transfers: dict[str, Transfer] = {}
        self.told: set[str] = set()
        """Ids of transfers whose published messages were checked."""
        self.refusals: list[tuple[Transfer, State]] = []
        """Spends and holds that were refused for want of credits, with all of Redis at that
        instant."""
        self.limited: list[tuple[Transfer, Any]] = []
        """Spends and holds of operations with a monthly limit, and their answers."""
        self.minutes: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        """Corrected minutes by tenant, user and month."""
        self._corrections: set[tuple[str, str]] = set()
        """Corrections that were made. A repetition does not make one again."""
        self.minutes_unknown: set[str] = set()
        """Tenants with corrections of which the outcome is unknown."""
        self.minutes_late: set[str] = set()
        """Tenants with corrections that Redis could not take at once, and may take at any time."""

    def of(self, account: tuple[str, str]) -> list[Transfer]:
        """The transfers of an account."""
        return [
            transfer for transfer in self.transfers.values() if transfer.person.account == account
        ]

    def moved(self, account: tuple[str, str]) -> tuple[int, list[int]]:
        """What transfers surely added to a balance, and what uncertain ones may."""
        sure, perhaps = 0, []
        for transfer in self.of(account):
            if transfer.state == "done":
                sure += transfer.moved_micros
            elif transfer.state == "unknown" and transfer.would_move:
                perhaps.append(transfer.would_move)
        # A month's allotment is that of the highest of its tiers.
        allotments = [transfer for transfer in self.of(account) if transfer.kind == "allot"]
        given = max(
            (transfer.micros for transfer in allotments if transfer.state == "done"), default=0
        )
        more = [transfer.micros - given for transfer in allotments if transfer.micros > given]
        return sure + given, perhaps + more

    async def do(self, node: ServerHost, transfer: Transfer) -> None:
        """Makes a transfer, or repeats one without an answer."""
        transfer = self.transfers.setdefault(transfer.entry_id, transfer)
        if transfer.state != "unknown":
            return
        troubled = node.line.troubled
        smooth = self.world.is_smooth
        transfer.at = self.world.now
        account, recalls = transfer.person.account, self.world.cluster.recalls
        before, free_micros = recalls[account], self._free_micros(node, account)
        if transfer.kind == "pay" and transfer.micros < 0:
            self.world.taken.add(transfer.person.account)
        try:
            answer = await self.world.cluster.finished(node.act(self._ask(node, transfer)))
        except (ServiceError, LiveError) as error:
            if smooth:
                self.world.unserved(transfer.at, error)
            return
        except ProtocolError as error:
            transfer.state = "refused"
            self._check_refused(transfer, error)
            return
        told = recalls[account] - before
        # A message that Redis gets twice recalls twice.
        assert told <= 1 + node.line.troubled - troubled, (transfer, told)
        if told:
            self._check_recalled(transfer, free_micros, self._free_micros(node, account))
        if answer is not None:  # without an answer the process has died
            self._take(transfer, answer, troubled == node.line.troubled)

    def _free_micros(self, node: ServerHost, account: tuple[str, str]) -> int | None:
        """An account's balance in Redis less what operations hold.

        None: the account is not in Redis.
        """
        key = node.process.live.keys.account(*account)
        balance, reserved = self.world.cluster.redis.wire.ask("HMGET", key, "balance", "reserved")
        return None if balance is None else int(balance) - int(reserved or 0)

    def _check_recalled(
        self, transfer: Transfer, before_micros: int | None, after_micros: int | None
    ) -> None:
        """A transfer recalls sessions only if grants alone hinder it."""
        if before_micros is not None and after_micros is not None:
            assert max(before_micros, after_micros) >= transfer.micros, (transfer, before_micros)

    async def repeat(self, node: ServerHost, transfer: Transfer, form: int) -> None:
        """Repeats a done transfer in other digits.

        It does so when only the ledger knows the transfer's key. The answer must be the same, and
        nothing must move.
        """
        if transfer.state != "done" or not transfer.form:
            return
        try:
            answer = await self.world.cluster.finished(node.act(self._write(node, transfer, form)))
        except (ServiceError, LiveError):
            return
        assert not isinstance(answer, Short), (transfer, answer)
        if isinstance(answer, Spent | Held):
            assert answer.amount_micros == transfer.micros, (transfer, answer)

    async def _write(self, node: ServerHost, transfer: Transfer, form: int) -> Any:
        account, key = AccountName(*transfer.person.account), transfer.hold_id or transfer.entry_id
        return await digits.ask(
            node, transfer.kind, account, key, transfer.micros, transfer.ttl_ms, form
        )

    async def _ask(self, node: ServerHost, transfer: Transfer) -> Any:
        if transfer.form:
            return await self._write(node, transfer, transfer.form)
        ledger, account = node.ledger, AccountName(*transfer.person.account)
        match transfer.kind:
            case "pay":
                entry = EntryPosted(
                    tenant=account.tenant,
                    account_id=account.account_id,
                    entry_id=transfer.entry_id,
                    entry_kind="grant" if transfer.micros > 0 else "adjust",
                    amount_micros=transfer.micros,
                    at=node.clock.now(),
                )
                return await ledger.enter(entry)
            case "spend":
                return await ledger.spend(
                    account,
                    entry_id=transfer.entry_id,
                    micros=transfer.micros,
                    operation=transfer.operation,
                    user_id=transfer.person.user_id,
                    monthly_limit=transfer.often,
                )
            case "hold":
                return await ledger.hold(
                    account,
                    hold_id=transfer.hold_id,
                    micros=transfer.micros,
                    ttl_ms=transfer.ttl_ms,
                    operation=transfer.operation,
                    user_id=transfer.person.user_id,
                    monthly_limit=transfer.often,
                )
            case "allot":
                # All in one month, which does not end in this world.
                grants = copy.copy(ledger)
                grants.rates = msgspec.structs.replace(ledger.rates, allotments=ALLOTMENTS)
                plan = BeforeOperation(timezone="UTC", tier=transfer.tier, spent_micros=None)
                await grants._grant_allotment(account, plan, START_AT + MONTH_MS)
                return True
            case "post":
                return await ledger.post(account.tenant, transfer.hold_id, transfer.micros)
        return await ledger.void(account.tenant, transfer.hold_id)

    def _check_refused(self, transfer: Transfer, error: ProtocolError) -> None:
        """The number of open holds refuses a hold only at its bound."""
        if self.world.losses or transfer.kind != "hold" or error.code != "rate_limited":
            return
        place = "/".join(transfer.person.account)
        account = look(self.world.cluster.redis).hashes["account"].get(place, {})
        assert int(account.get("holds", 0)) >= storage_limits.HOLDS_PER_ACCOUNT_MAX, (
            transfer,
            account,
        )

    def _take(self, transfer: Transfer, answer: Any, smooth: bool) -> None:
        if transfer.often is not None and transfer.operation:
            self.limited.append((transfer, answer))
        match answer:
            case bool():
                # Postgres has the entry. Only without a fault Redis surely took it too.
                if smooth and not self.world.cluster.redis_is_away:
                    transfer.state = "done"
                    transfer.moved_micros = 0 if transfer.kind == "allot" else transfer.micros
            case Spent():
                assert answer.amount_micros == transfer.micros, (transfer, answer)
                transfer.state, transfer.moved_micros = "done", -answer.amount_micros
            case Held():
                assert answer.amount_micros == transfer.micros, (transfer, answer)
                transfer.state = "done"
            case Posted():
                self._check_end(transfer, answer)
                self._take_posted(transfer, answer)
            case Voided():
                self._check_end(transfer, answer)
                transfer.state = "done"
            case Short():
                transfer.state = "refused"
                if smooth and self.world.is_smooth:
                    # After a fault, the sessions that hold credits may not have received the
                    # recall.
                    self.refusals.append((transfer, look(self.world.cluster.redis)))
            case Limited() | HoldGone() | Exceeds():
                transfer.state = "refused"
            case _:
                raise AssertionError(answer)

    def _check_end(self, transfer: Transfer, answer: Posted | Voided) -> None:
        """A hold has one end: either posted or voided."""
        for other in self.transfers.values():
            if (other.hold_id, other.state) == (transfer.hold_id, "done"):
                assert other.kind in ("hold", transfer.kind), (transfer, answer, other)

    def _take_posted(self, transfer: Transfer, answer: Posted) -> None:
        """A hold is posted once; a second request gets the first charge."""
        first = next(
            (
                other
                for other in self.transfers.values()
                if other.kind == "post"
                and other.hold_id == transfer.hold_id
                and other.state == "done"
            ),
            None,
        )
        transfer.state = "done"
        if first is not None:
            posted = sum(
                -other.moved_micros
                for other in self.transfers.values()
                if other.kind == "post" and other.hold_id == transfer.hold_id
            )
            assert answer.posted_micros == posted, (transfer, answer, first)
            return
        transfer.moved_micros = -answer.posted_micros
        for other in self.transfers.values():
            if (other.kind, other.hold_id, other.state) == ("post", transfer.hold_id, "unknown"):
                other.state = "done"  # the end of the hold is known now

    async def adjust(
        self, node: ServerHost, person: Person, entry_id: str, minutes: int, month: str
    ) -> None:
        """Corrects a month of a subscriber of the organisation."""
        troubled = node.line.troubled
        try:
            await self.world.cluster.finished(
                node.act(
                    node.ledger.adjust_minutes(
                        person.tenant,
                        person.user_id,
                        entry_id=entry_id,
                        minutes=minutes,
                        reason="simulated",
                        month=month,
                    )
                )
            )
        except (ServiceError, LiveError):
            self.minutes_unknown.add(person.tenant)
            return
        except ProtocolError:
            return
        if troubled != node.line.troubled or self.world.cluster.redis_is_away:
            # Postgres has the correction; the next pass over the inbox brings it to Redis.
            self.minutes_late.add(person.tenant)
        if (person.tenant, entry_id) not in self._corrections:
            self._corrections.add((person.tenant, entry_id))
            self.minutes[person.tenant, person.user_id, month] += minutes
        self.world.lowered |= {f"org:{person.tenant}", f"member:{person.tenant}/{person.user_id}"}
