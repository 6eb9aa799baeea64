"""Money at the counter of a virtual world: grants, spends, holds, adjustments.

Whoever gets no answer does not know whether it was done, asks again under the same id
until there is one, and is to be told what was done. The desk keeps what each deed came to.
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
from tests.simulation.processes import Server
from tests.simulation.state import State, look
from tests.simulation.virtual import START_AT
from tests.simulation.world import World

MONTH_MS = 31 * 24 * 3_600_000


@dataclass
class Deed:
    """Something that moves money, under an id."""

    kind: str
    person: Person
    entry_id: str
    micros: int
    """What is asked for, positive; of an adjustment, signed."""
    hold_id: str = ""
    ttl_ms: int = 0
    form: int = 0
    """In which digits its amount is written (``digits``); 0: nobody writes it."""
    often: int | None = None
    """How often a month its operation may be done; None: as often as one likes."""
    tier: str = ""
    """Of an allotment: the tier that the process believes the account to have."""
    at: int = 0
    state: str = "unknown"
    """``unknown`` while nobody knows, then ``done`` or ``refused``."""
    moved_micros: int = 0
    """What it adds to the balance, once it is done."""

    @property
    def operation(self) -> str | None:
        """The operation that is done; an amount in other digits is for none."""
        return None if self.form else {"spend": "sketch", "hold": "film"}.get(self.kind)

    @property
    def would_move(self) -> int:
        """What it adds to the balance if it was done."""
        match self.kind:
            case "pay":
                return self.micros
            case "spend" | "post":
                return -self.micros
        return 0


class Desk:
    """Moves money through one process or another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deeds: dict[str, Deed] = {}
        self.told: set[str] = set()
        """Deeds of which it was looked who heard of them."""
        self.refusals: list[tuple[Deed, State]] = []
        """Spends and holds for which there was not enough, and everything in Redis then."""
        self.limited: list[tuple[Deed, Any]] = []
        """Spends and holds of operations with a monthly limit, and what they were answered."""
        self.minutes: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        """Corrections of months: tenant, user, month."""
        self._corrections: set[tuple[str, str]] = set()
        """Those that were made: asked for again, they are not made once more."""
        self.minutes_unknown: set[str] = set()
        """Tenants with corrections of which nobody knows whether they were made."""
        self.minutes_late: set[str] = set()
        """Tenants with corrections that Redis could not take at once, and may take any time."""

    def of(self, account: tuple[str, str]) -> list[Deed]:
        """The deeds of an account."""
        return [deed for deed in self.deeds.values() if deed.person.account == account]

    def moved(self, account: tuple[str, str]) -> tuple[int, list[int]]:
        """What deeds have added to a balance for sure, and what others may have."""
        sure, perhaps = 0, []
        for deed in self.of(account):
            if deed.state == "done":
                sure += deed.moved_micros
            elif deed.state == "unknown" and deed.would_move:
                perhaps.append(deed.would_move)
        # A month gives what the highest of its tiers gives.
        allotments = [deed for deed in self.of(account) if deed.kind == "allot"]
        given = max((deed.micros for deed in allotments if deed.state == "done"), default=0)
        more = [deed.micros - given for deed in allotments if deed.micros > given]
        return sure + given, perhaps + more

    async def do(self, node: Server, deed: Deed) -> None:
        """Does it, or asks again for what was not answered."""
        deed = self.deeds.setdefault(deed.entry_id, deed)
        if deed.state != "unknown":
            return
        troubled = node.line.troubled
        smooth = self.world.is_smooth
        deed.at = self.world.now
        if deed.kind == "pay" and deed.micros < 0:
            self.world.taken.add(deed.person.account)
        try:
            answer = await self.world.cluster.finished(node.act(self._ask(node, deed)))
        except (ServiceError, LiveError) as error:
            if smooth:
                self.world.unserved(deed.at, error)
            return
        except ProtocolError as error:
            deed.state = "refused"
            self._check_refused(deed, error)
            return
        if answer is not None:  # or else the process has died
            self._take(deed, answer, troubled == node.line.troubled)

    async def repeat(self, node: Server, deed: Deed, form: int) -> None:
        """Asks again for what was done, in other digits, when nothing but the ledger knows its
        key any more: it is answered the same, and moves nothing."""
        if deed.state != "done" or not deed.form:
            return
        try:
            answer = await self.world.cluster.finished(node.act(self._write(node, deed, form)))
        except (ServiceError, LiveError):
            return
        assert not isinstance(answer, Short), (deed, answer)
        if isinstance(answer, Spent | Held):
            assert answer.amount_micros == deed.micros, (deed, answer)

    async def _write(self, node: Server, deed: Deed, form: int) -> Any:
        account, key = AccountName(*deed.person.account), deed.hold_id or deed.entry_id
        return await digits.ask(node, deed.kind, account, key, deed.micros, deed.ttl_ms, form)

    async def _ask(self, node: Server, deed: Deed) -> Any:
        if deed.form:
            return await self._write(node, deed, deed.form)
        money, account = node.money, AccountName(*deed.person.account)
        match deed.kind:
            case "pay":
                entry = EntryPosted(
                    tenant=account.tenant,
                    account_id=account.account_id,
                    entry_id=deed.entry_id,
                    entry_kind="grant" if deed.micros > 0 else "adjust",
                    amount_micros=deed.micros,
                    at=node.clock.now(),
                )
                return await money.enter(entry)
            case "spend":
                return await money.spend(
                    account,
                    entry_id=deed.entry_id,
                    micros=deed.micros,
                    operation=deed.operation,
                    user_id=deed.person.user_id,
                    monthly_limit=deed.often,
                )
            case "hold":
                return await money.hold(
                    account,
                    hold_id=deed.hold_id,
                    micros=deed.micros,
                    ttl_ms=deed.ttl_ms,
                    operation=deed.operation,
                    user_id=deed.person.user_id,
                    monthly_limit=deed.often,
                )
            case "allot":
                # All in one month, which does not end in this world.
                grants = copy.copy(money)
                grants.rates = msgspec.structs.replace(money.rates, allotments=ALLOTMENTS)
                plan = BeforeOperation(timezone="UTC", tier=deed.tier, spent_micros=None)
                await grants._grant_allotment(account, plan, START_AT + MONTH_MS)
                return True
            case "post":
                return await money.post(account.tenant, deed.hold_id, deed.micros)
        return await money.void(account.tenant, deed.hold_id)

    def _check_refused(self, deed: Deed, error: ProtocolError) -> None:
        """An account has no more open holds than it may, and is refused none before."""
        if self.world.losses or deed.kind != "hold" or error.code != "rate_limited":
            return
        place = "/".join(deed.person.account)
        account = look(self.world.cluster.redis).hashes["account"].get(place, {})
        assert int(account.get("holds", 0)) >= storage_limits.HOLDS_PER_ACCOUNT_MAX, (deed, account)

    def _take(self, deed: Deed, answer: Any, smooth: bool) -> None:
        if deed.often is not None and deed.operation:
            self.limited.append((deed, answer))
        match answer:
            case bool():
                # Postgres has it; whether Redis took it too shows where nothing went wrong.
                if smooth and not self.world.cluster.redis_is_away:
                    deed.state = "done"
                    deed.moved_micros = 0 if deed.kind == "allot" else deed.micros
            case Spent():
                assert answer.amount_micros == deed.micros, (deed, answer)
                deed.state, deed.moved_micros = "done", -answer.amount_micros
            case Held():
                assert answer.amount_micros == deed.micros, (deed, answer)
                deed.state = "done"
            case Posted():
                self._check_end(deed, answer)
                self._take_posted(deed, answer)
            case Voided():
                self._check_end(deed, answer)
                deed.state = "done"
            case Short():
                deed.state = "refused"
                if smooth and self.world.is_smooth:
                    # Or else those who hold may not have heard that they are recalled.
                    self.refusals.append((deed, look(self.world.cluster.redis)))
            case Limited() | HoldGone() | Exceeds():
                deed.state = "refused"
            case _:
                raise AssertionError(answer)

    def _check_end(self, deed: Deed, answer: Posted | Voided) -> None:
        """A hold has one end: it is not both charged and given back."""
        for other in self.deeds.values():
            if (other.hold_id, other.state) == (deed.hold_id, "done"):
                assert other.kind in ("hold", deed.kind), (deed, answer, other)

    def _take_posted(self, deed: Deed, answer: Posted) -> None:
        """A hold is posted once: whoever comes second is told what was charged then."""
        first = next(
            (
                other
                for other in self.deeds.values()
                if other.kind == "post" and other.hold_id == deed.hold_id and other.state == "done"
            ),
            None,
        )
        deed.state = "done"
        if first is not None:
            posted = sum(
                -other.moved_micros
                for other in self.deeds.values()
                if other.kind == "post" and other.hold_id == deed.hold_id
            )
            assert answer.posted_micros == posted, (deed, answer, first)
            return
        deed.moved_micros = -answer.posted_micros
        for other in self.deeds.values():
            if (other.kind, other.hold_id, other.state) == ("post", deed.hold_id, "unknown"):
                other.state = "done"  # it is known now what became of the hold

    async def adjust(
        self, node: Server, person: Person, entry_id: str, minutes: int, month: str
    ) -> None:
        """Corrects a month of a member."""
        troubled = node.line.troubled
        try:
            await self.world.cluster.finished(
                node.act(
                    node.money.adjust_minutes(
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
            # Postgres has it; whoever looks through the inbox brings it to Redis later.
            self.minutes_late.add(person.tenant)
        if (person.tenant, entry_id) not in self._corrections:
            self._corrections.add((person.tenant, entry_id))
            self.minutes[person.tenant, person.user_id, month] += minutes
        self.world.lowered |= {f"org:{person.tenant}", f"member:{person.tenant}/{person.user_id}"}
