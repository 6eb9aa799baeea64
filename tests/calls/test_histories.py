"""Random calls whose events are lost, repeated and late."""

import random

import pytest

from server.calls.event_body import EventBody
from server.calls.facts import Adapter, CallRun, Fact, FactKind
from server.calls.livekit import LiveKitAdapter
from server.calls.livekit_rest import LiveKitRest
from server.calls.stream import StreamAdapter
from server.calls.stream_rest import StreamRest
from server.calls.sweep import facts_of_truth
from storage.rows.calls import SweepDue
from tests.calls import fake_livekit, fake_stream
from tests.calls.direct import DirectClient
from tests.calls.fake_calls import FakeCalls, FakeRun
from tests.calls.fake_livekit import FakeLiveKit
from tests.calls.fake_stream import FakeStream
from tests.calls.mischief import Mischief

NOW_MS = 1_790_000_000_000
USERS = ("ann", "bob", "cy")


def stream_adapter(fake: FakeStream) -> Adapter:
    key, secret = fake_stream.API_KEY, fake_stream.SECRET
    return StreamAdapter(secret, StreamRest(DirectClient(fake), key, secret, lambda: fake.now_ms))


def livekit_adapter(fake: FakeLiveKit) -> Adapter:
    key, secret = fake_livekit.API_KEY, fake_livekit.SECRET
    rest = LiveKitRest(DirectClient(fake), key, secret, lambda: fake.now_ms)
    return LiveKitAdapter(key, secret, rest)


def play(fake: FakeCalls, chance: random.Random) -> list[FakeRun]:
    """Two calls at once, then one again; users have several devices."""
    runs = [fake.start("default:a", payer="ann"), fake.start("default:b")]
    for _ in range(chance.randint(2, 12)):
        fake.now_ms += chance.choice((0, 1, 999, 1_500, 30_000, 61_234))
        run = chance.choice(runs[-2:])
        present = run.present()
        if present and chance.random() < 0.45:
            fake.leave(run, chance.choice(present))
        else:
            fake.join(run, chance.choice(USERS))
    fake.now_ms += 5_000
    fake.end(runs[0])
    if chance.random() < 0.5:
        runs.append(fake.start("default:a"))
        fake.join(runs[-1], "ann")
        fake.now_ms += 7_000
        fake.end(runs[-1])
    fake.end(runs[1])
    return runs


def heard(
    fake: FakeCalls, adapter: Adapter, mischief: Mischief, chance: random.Random
) -> list[Fact]:
    """The facts of all events as they arrive, each key once."""
    found: dict[str, Fact] = {}
    for sent in mischief.deliveries(fake.take(), chance):
        body = EventBody(sent.headers)
        body.add(sent.body)
        unpacked = body.finish()
        adapter.verify(sent.headers, unpacked, sent.at_ms)
        for fact in adapter.facts(unpacked):
            found.setdefault(fact.key, fact)
    return list(found.values())


async def swept(adapter: Adapter, run: FakeRun, known: list[Fact]) -> list[Fact]:
    """The facts of a run, with those of a sweep."""
    mine = [fact for fact in known if fact.call_session == run.session]
    asked = CallRun(call=run.call, call_session=run.session, rest_name=run.name)
    due = SweepDue(adapter.name, run.session, run.call, run.name, None, None, 0, NOW_MS)
    return [*mine, *facts_of_truth(await adapter.sweep(asked), due, mine)]


def counted_ms(facts: list[Fact], user: str) -> int:
    """The time of a user by the facts, all devices together."""
    ended_at = min((fact.at_ms for fact in facts if fact.kind is FactKind.ENDED), default=None)
    joined: dict[str | None, int] = {}
    left: dict[str | None, int] = {}
    for fact in facts:
        if fact.participant == user and fact.kind is FactKind.JOINED:
            joined[fact.device] = min(fact.at_ms, joined.get(fact.device, fact.at_ms))
        if fact.participant == user and fact.kind is FactKind.LEFT:
            left[fact.device] = max(fact.at_ms, left.get(fact.device, fact.at_ms))
    total_ms = until_ms = 0
    for device, from_ms in sorted(joined.items(), key=lambda one: one[1]):
        to_ms = left.get(device, ended_at)
        assert to_ms is not None
        total_ms += max(0, to_ms - max(from_ms, until_ms))
        until_ms = max(until_ms, to_ms)
    return total_ms


@pytest.mark.parametrize(("names", "histories"), [("new", 500), ("old", 100)])
async def test_after_the_sweep_stream_s_calls_are_known_to_the_millisecond(
    names: str, histories: int
) -> None:
    mischief = Mischief(lost=0.1, repeated=0.1, delayed=0.3)
    for seed in range(histories):
        chance = random.Random(seed)
        fake = FakeStream(
            NOW_MS,
            seed,
            names="new" if names == "new" else "old",
            instants=chance.choice(("rfc3339", "ns")),
            packed=chance.random() < 0.5,
            page_rows=chance.randint(1, 5),
        )
        adapter = stream_adapter(fake)
        runs = play(fake, chance)
        known = heard(fake, adapter, mischief, chance)
        for run in runs:
            facts = await swept(adapter, run, known)
            assert len({fact.key for fact in facts}) == len(facts)
            for user in USERS:
                assert counted_ms(facts, user) == run.true_ms(user), (seed, user)
            first = next(fact for fact in facts if fact.key.startswith("sweep:"))
            assert (first.kind, first.custom) == (FactKind.STARTED, run.custom)


async def test_livekit_s_calls_are_known_to_a_second_for_each_stay() -> None:
    mischief = Mischief(repeated=0.2, delayed=0.5)
    for seed in range(400):
        chance = random.Random(seed)
        fake = FakeLiveKit(NOW_MS, seed)
        adapter = livekit_adapter(fake)
        runs = play(fake, chance)
        known = heard(fake, adapter, mischief, chance)
        for run in runs:
            facts = await swept(adapter, run, known)
            for user in USERS:
                stays = sum(one.user == user for one in run.presences)
                away_ms = run.true_ms(user) - counted_ms(facts, user)
                # LiveKit dates those who left in whole seconds: never to our favour.
                assert 0 <= away_ms <= 1_000 * stays, (seed, user)


async def test_a_lost_join_is_in_the_leave() -> None:
    for fake, adapter in (
        ((stream := FakeStream(NOW_MS)), stream_adapter(stream)),
        ((livekit := FakeLiveKit(NOW_MS)), livekit_adapter(livekit)),
    ):
        run = fake.start("default:a")
        ann = fake.join(run, "ann")
        fake.now_ms += 60_000
        fake.leave(run, ann)
        fake.sent = [fake.sent[-1]]
        facts = heard(fake, adapter, Mischief(), random.Random(0))
        assert counted_ms(facts, "ann") == 60_000
