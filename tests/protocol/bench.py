"""A meter without Redis, clock or event loop; tests play these parts."""

from typing import Any

import msgspec

from protocol.metering.effects import Effect, Push, Reply
from protocol.metering.meter import Meter
from protocol.metering.projection import AccountProjection, burn_line_of
from protocol.metering.session import Grant, SessionState, unstarted
from protocol.metering.states import Event, Phase
from protocol.metering.steps import Step
from protocol.metering.terms import Terms
from protocol.wire import messages
from tests.protocol.examples import (
    CREDIT,
    NOW,
    TERMS,
    account_of,
    identity_of,
    line,
    month_of,
    session_of,
    terms_of,
)


class Bench:
    """A meter whose time the test sets.

    The test plays its Redis, too.
    """

    def __init__(
        self,
        session: SessionState | None = None,
        account: AccountProjection | None = None,
        *,
        sockets: int = 1,
        uncovered_ms: int = 60_000,
    ) -> None:
        self.now = NOW
        session = session or session_of()
        if account is None:
            account = account_of(100 * CREDIT)
            terms, standing = session.identity.terms, session.standing
            running = standing.phase is Phase.ACTIVE
            line = burn_line_of(
                terms, standing.elapsed_ms, standing.at, standing.free_ms, running=running
            )
            account.lines["chat-1"] = line
        self.account = account
        self.meter = Meter(session, account, month_of, uncovered_ms)
        self.effects: list[Effect] = []
        for _ in range(sockets):
            self.meter.attach(self.now)
        self.drain()

    def drain(self) -> list[Effect]:
        """The meter's new effects; they are appended to ``effects``, too."""
        drained = self.meter.effects()
        self.effects += drained
        return drained

    def run(self, ms: int) -> list[Effect]:
        """Lets time pass, with every deadline on its way; returns new effects."""
        until, seen = self.now + ms, len(self.effects)
        for _ in range(200):
            due_at = self.meter.timer()
            if due_at is None or due_at > until:
                self.now = until
                return self.effects[seen:]
            self.now = max(self.now, due_at)
            self.meter.handle_timer(self.now)
            self.drain()
        raise AssertionError("deadlines without end")

    def alive(self) -> list[Effect]:
        """The client answers a ping."""
        self.meter.alive(self.now, self.now)
        return self.drain()

    def ask(self, event: Event, token: object = None, reason: str = "client") -> list[Effect]:
        """A client makes a request."""
        assert self.meter.request(event, self.now, token or event.value, reason)
        return self.drain()

    @property
    def step(self) -> Step:
        """The step that is on its way."""
        assert self.meter.asked is not None
        return self.meter.asked

    def accept(self, offer: int | None = 0, **grant: Any) -> list[Effect]:
        """Redis makes the step with the chosen offer.

        With ``offer`` None, Redis makes it with the grant that the session has.
        """
        step = self.step
        offers = [offer.grant for offer in step.offers]
        given = Grant()
        if (offer is None or not offers) and step.keep is not None:
            given = step.keep.grant
        elif offers and offer is not None:
            given = offers[offer]
        given = msgspec.structs.replace(given, **grant)
        self.meter.granted(
            Reply(accepted=True, session=SessionState(step.before.identity, step.standing, given)),
            self.now,
        )
        return self.drain()

    def answer(self, **reply: Any) -> list[Effect]:
        """Redis gives an answer other than success."""
        self.meter.granted(Reply(accepted=False, **reply), self.now)
        return self.drain()

    def moved_to(self, grant: Grant | None = None, **changes: Any) -> SessionState:
        """The session as another process's step would leave it."""
        session = self.meter.session
        version = session.standing.version + 1
        standing = msgspec.structs.replace(session.standing, version=version, **changes)
        return SessionState(session.identity, standing, grant or session.grant)


def only(effects: list[Effect], kind: Any) -> list[Any]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def said(effects: list[Effect]) -> list[messages.ServerMessage]:
    """The messages that are pushed."""
    decoder = msgspec.json.Decoder(messages.Notice | messages.Minute)
    return [
        decoder.decode(push.message) if isinstance(push.message, bytes) else push.message
        for push in only(effects, Push)
    ]


def numbers(effects: list[Effect]) -> list[int | None]:
    """The numbers of the notices that are pushed."""
    return [getattr(message, "seq", None) for message in said(effects)]


def final(granted_ms: int = 30_000, limit: str = "credits") -> Grant:
    """A grant at whose end the session stops."""
    return Grant(granted_ms=granted_ms, held_micros=granted_ms * 1_000 // 60, final=limit)


def starting(terms: Terms = TERMS, **identity: Any) -> Bench:
    """A session that is about to start."""
    standing = unstarted(Phase.PAUSED, NOW, 0 if "free_key" in identity else terms.free_ms)
    bench = Bench(
        SessionState(identity_of(terms, **identity), standing, Grant()),
        account_of(100 * CREDIT),
        sockets=0,
    )
    bench.meter.start(NOW, "start")
    bench.drain()
    return bench


def alone(micros: int, terms: Terms | None = None, **bench: Any) -> Bench:
    """A session alone on its account; its grant is half a minute."""
    terms = terms or terms_of()
    account = account_of(micros)
    account.replace(1, micros, 0, {"chat-1": line(terms)})
    grant = Grant(granted_ms=30_000, held_micros=terms.cost_micros(30_000, terms.free_ms))
    return Bench(session_of(terms, grant=grant), account, **bench)


def stop_of(effects: list[Any]) -> messages.LimitReached:
    """The only stop among the messages."""
    (stop,) = (one for one in said(effects) if isinstance(one, messages.LimitReached))
    return stop
