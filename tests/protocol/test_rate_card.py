"""The rate card: its meaning, its accepted values and its errors."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.terms import Terms
from protocol.rate_card import Package, RateCard, RateCardError, parse_rate_card, terms_with
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CHAT = Terms(
    kind="chat",
    price_micros=1_000_000,
    free_ms=60_000,
    free_scope="session",
    first_increment_ms=1_000,
    next_increment_ms=1_000,
    counts_minutes=False,
    warn_at_ms=(600_000, 300_000, 60_000),
    stop_grace_ms=15_000,
    reconnect_grace_ms=30_000,
    gap="skip",
    session_cap_ms=0,
    tick_ms=1_000,
)
RECORDING = msgspec.structs.replace(
    CHAT,
    kind="recording",
    price_micros=0,
    free_ms=0,
    first_increment_ms=60_000,
    next_increment_ms=60_000,
    counts_minutes=True,
    gap="bill",
)

STUDY_CALL = msgspec.structs.replace(
    RECORDING,
    kind="call",
    gap="skip",
    clock="provider",
    tolerance_ms=2_000,
    enforce="participant",
)


def the_card() -> RateCard:
    path = Path(__file__).parents[2] / "rates.toml"
    return parse_rate_card(tomllib.loads(path.read_text()))


def problems(toml: str) -> tuple[str, ...]:
    with pytest.raises(RateCardError) as caught:
        parse_rate_card(tomllib.loads(toml))
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def kind_problems(line: str) -> tuple[str, ...]:
    price = "" if line.startswith("credits_per_minute") else 'credits_per_minute = "1"\n'
    return problems(f"[kinds.chat]\n{price}{line}")


# --- The card in the repository


def test_the_default_card_is_the_specification() -> None:
    card = the_card()
    assert card.terms("chat") == CHAT
    assert card.terms("recording") == RECORDING
    assert card.terms("call") == STUDY_CALL
    assert card.operations == {
        "script_generation": 1_000_000,
        "voice_creation": 5_000_000,
        "video_processing": 2_000_000,
        "chat_refinement": 1_000_000,
    }
    assert card.tiers == {"free": {"script_generation": 3}}


@pytest.mark.parametrize("kind", ["chat", "recording"])
def test_a_demonstration_is_its_kind_but_faster(kind: str) -> None:
    card = the_card()
    demonstration = card.terms(f"{kind}-demo")
    assert demonstration.speed == 10
    assert msgspec.structs.replace(demonstration, kind=kind, speed=1) == card.terms(kind)


def test_an_unknown_kind_is_the_peers_error() -> None:
    with pytest.raises(PeerError) as caught:
        the_card().terms("chatt")
    assert caught.value.code == ErrorCode.UNKNOWN_KIND
    assert caught.value.message.startswith("kind: unknown kind 'chatt', did you mean 'chat")


def test_operations_have_a_price() -> None:
    card = the_card()
    assert card.operation_micros("voice_creation") == 5_000_000
    with pytest.raises(BadMessageError, match="operation: unknown operation 'voice_creatoin'"):
        card.operation_micros("voice_creatoin")


def test_tiers_bound_what_they_name() -> None:
    card = the_card()
    assert card.operations_per_month("free", "script_generation") == 3
    assert card.operations_per_month("free", "voice_creation") is None
    assert card.operations_per_month("gold", "script_generation") is None
    assert card.operations_per_month(None, "script_generation") is None


# --- Defaults


def test_what_a_kind_leaves_out() -> None:
    card = parse_rate_card({"kinds": {"call": {"credits_per_minute": "2.5"}}})
    assert card.terms("call") == msgspec.structs.replace(
        CHAT, kind="call", price_micros=2_500_000, free_ms=0
    )


def test_an_empty_card_sells_nothing() -> None:
    assert parse_rate_card({}) == RateCard(kinds={}, operations={}, tiers={})


def test_warnings_are_sorted_and_ticks_may_have_decimals() -> None:
    values = {"credits_per_minute": "0", "warn_at_seconds": [60, 600], "tick_seconds": 0.25}
    terms = parse_rate_card({"kinds": {"a": values}}).terms("a")
    assert terms.warn_at_ms == (600_000, 60_000)
    assert terms.tick_ms == 250


# --- Refusals


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("free_seconds = -1", "free_seconds: must be at least 0"),
        ("free_seconds = 86401", "free_seconds: must be at most 86400"),
        ("free_seconds = 1.5", "free_seconds: expected a whole number"),
        ("free_seconds = true", "free_seconds: expected a whole number"),
        ('free_seconds = "60"', "free_seconds: expected a whole number"),
        ('free_scope = "week"', "free_scope: must be one of session, pair, day"),
        ("free_scope = [1]", "free_scope: must be one of session, pair, day"),
        ('credits_per_minute = "-1"', "credits_per_minute: must not be negative"),
        ('credits_per_minute = "10001"', "credits_per_minute: must be at most 10000"),
        ("credits_per_minute = 1", "credits_per_minute: expected a decimal string such as"),
        ("credits_per_minute = 0.1", "credits_per_minute: expected a decimal string such as"),
        ("increment_seconds = [0, 1]", "increment_seconds[0]: must be at least 1"),
        ("increment_seconds = [60, 0]", "increment_seconds[1]: must be at least 1"),
        ("increment_seconds = [60, 3601]", "increment_seconds[1]: must be at most 3600"),
        ("increment_seconds = [60]", "increment_seconds: expected two numbers"),
        ("increment_seconds = 60", "increment_seconds: expected two numbers"),
        ("counts_minutes = 1", "counts_minutes: expected true or false"),
        ("warn_at_seconds = 60", "warn_at_seconds: expected a list of seconds"),
        ("warn_at_seconds = [60, 0]", "warn_at_seconds[1]: must be at least 1"),
        ("warn_at_seconds = [60, 300, 60]", "warn_at_seconds: has the same threshold twice"),
        (f"warn_at_seconds = {list(range(1, 18))}", "warn_at_seconds: has more than 16 entries"),
        ("stop_grace_seconds = 301", "stop_grace_seconds: must be at most 300"),
        ("stop_grace_seconds = -1", "stop_grace_seconds: must be at least 0"),
        ("reconnect_grace_seconds = 3601", "reconnect_grace_seconds: must be at most 3600"),
        ('gap = "charge"', "gap: must be one of skip, bill"),
        ("max_session_seconds = -1", "max_session_seconds: must be at least 0"),
        ("max_session_seconds = 2678401", "max_session_seconds: must be at most 2678400"),
        ("tick_seconds = 0.2", "tick_seconds: must be between 0.25 and 60"),
        ("tick_seconds = 61", "tick_seconds: must be between 0.25 and 60"),
        ("tick_seconds = nan", "tick_seconds: must be between 0.25 and 60"),
        ("tick_seconds = false", "tick_seconds: expected a number of seconds"),
        ("speed = 0", "speed: must be at least 1"),
        ("speed = 101", "speed: must be at most 100"),
        ("speed = 1.5", "speed: expected a whole number"),
        ("free_second = 1", "free_second: unknown key 'free_second', did you mean 'free_seconds'?"),
        ("qqq = 1", "qqq: unknown key 'qqq'"),
    ],
)
def test_a_mistake_is_named_by_its_key(line: str, problem: str) -> None:
    (only,) = kind_problems(line)
    assert only.startswith(f"kinds.chat.{problem}")


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[kinds.chat]", "kinds.chat.credits_per_minute: missing"),
        ("kinds = 1", "kinds: expected a table"),
        ("[kinds]\nchat = 1", "kinds.chat: expected a table"),
        ('[kinds."a b"]\ncredits_per_minute = "1"', "kinds.a b: a name is 1-128 characters"),
        ("[kind.chat]", "kind: unknown key 'kind', did you mean 'kinds'?"),
        ("[bundles.small]", "bundles: unknown key 'bundles'"),
        ("operations = []", "operations: expected a table"),
        ("[operations]\nscript = 1", "operations.script: expected a decimal string"),
        ("[tiers]\nfree = 3", "tiers.free: expected a table"),
        ("[tiers.free]\noperations = 3", "tiers.free.operations: unknown key 'operations'"),
        (
            '[operations]\nscript = "1"\n[tiers.free.operations_per_month]\nscrip = 1',
            "tiers.free.operations_per_month.scrip: unknown key 'scrip', did you mean 'script'?",
        ),
        (
            '[operations]\nscript = "1"\n[tiers.free.operations_per_month]\nscript = -1',
            "tiers.free.operations_per_month.script: must be at least 0",
        ),
    ],
)
def test_a_table_that_is_none(toml: str, problem: str) -> None:
    found = problems(toml)
    assert any(one.startswith(problem) for one in found), found


def test_all_mistakes_are_told_at_once() -> None:
    found = problems(
        """
        colour = "green"
        [kinds.chat]
        credits_per_minute = "free"
        gap = "none"
        [kinds.call]
        speed = 0
        [operations]
        script = "1e3"
        """
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "colour",
        "kinds.chat.credits_per_minute",
        "kinds.chat.gap",
        "kinds.call.credits_per_minute",
        "kinds.call.speed",
        "operations.script",
    ]


def test_the_number_of_kinds_is_bounded() -> None:
    kinds = {f"k{number}": {"credits_per_minute": "1"} for number in range(limits.KINDS_MAX + 1)}
    with pytest.raises(RateCardError, match="kinds: has more than 256 entries"):
        parse_rate_card({"kinds": kinds})


CALL = 'credits_per_minute = "1"\nclock = "provider"\n'


def test_a_kind_with_an_outside_clock() -> None:
    def call(lines: str) -> Terms:
        return parse_rate_card(tomllib.loads(f"[kinds.call]\n{CALL}{lines}")).terms("call")

    terms = call('tolerance_seconds = 5\nenforce = "participant"')
    assert (terms.clock, terms.tolerance_ms, terms.enforce) == ("provider", 5_000, "participant")
    terms = call("")
    assert (terms.tolerance_ms, terms.enforce) == (2_000, "none")
    assert (CHAT.clock, CHAT.tolerance_ms, CHAT.enforce) == ("server", 2_000, "none")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (CALL + 'gap = "bill"', "kinds.call.gap: an absence from a call is never billed"),
        (CALL + "speed = 10", "kinds.call.speed: an outside clock has one speed"),
        (CALL + "tolerance_seconds = -1", "kinds.call.tolerance_seconds: must be at least 0"),
        (CALL + "tolerance_seconds = 3601", "kinds.call.tolerance_seconds: must be at most 3600"),
        (CALL + 'enforce = "all"', "kinds.call.enforce: must be one of none, participant, call"),
        (
            'credits_per_minute = "1"\nclock = "theirs"',
            "kinds.call.clock: must be one of server, provider",
        ),
        (
            'credits_per_minute = "1"\nclock = "server"\nenforce = "call"',
            'kinds.call.enforce: only for kinds with clock = "provider"',
        ),
    ],
)
def test_an_outside_clock_that_is_wrong(lines: str, problem: str) -> None:
    assert problems(f"[kinds.call]\n{lines}") == (problem,)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.floats()
    | st.sampled_from(["", "1", "0.5", "bill", "day", "provider", "call"])
    | st.lists(st.integers(-1, 700), max_size=4)
)


@CALM
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "free_seconds",
                "free_scope",
                "credits_per_minute",
                "increment_seconds",
                "counts_minutes",
                "gap",
                "warn_at_seconds",
                "stop_grace_seconds",
                "max_session_seconds",
                "tick_seconds",
                "speed",
                "clock",
                "tolerance_seconds",
                "enforce",
                "x",
            ]
        ),
        VALUES,
    )
)
def test_whatever_is_taken_can_be_metered(values: dict[str, Any]) -> None:
    try:
        terms = parse_rate_card({"kinds": {"a": values}}).terms("a")
    except RateCardError as error:
        assert all(one.startswith("kinds.a.") for one in error.problems)  # noqa: PT017
        return
    assert 0 <= terms.price_micros <= limits.PRICE_MICROS_MAX
    assert min(terms.first_increment_ms, terms.next_increment_ms) >= 1_000
    assert limits.TICK_MS_MIN <= terms.tick_ms <= limits.TICK_MS_MAX
    assert list(terms.warn_at_ms) == sorted(set(terms.warn_at_ms), reverse=True)
    assert terms.cost_micros(limits.SESSION_CAP_MS_MAX, terms.free_ms) < limits.SAFE_INTEGER_MAX


# --- Prepared sessions


def test_a_prepared_session_has_terms_of_its_own() -> None:
    terms = terms_with(CHAT, credits_per_minute="3.99", free_seconds=0, max_session_seconds=600)
    assert terms == msgspec.structs.replace(
        CHAT, price_micros=3_990_000, free_ms=0, session_cap_ms=600_000
    )
    assert terms_with(CHAT) == CHAT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credits_per_minute": "-1"}, "credits_per_minute: must not be negative"),
        ({"credits_per_minute": 1}, "credits_per_minute: expected a decimal string"),
        ({"credits_per_minute": "10000.000001"}, "credits_per_minute: must be at most 10000"),
        ({"free_seconds": -1}, "free_seconds: must be at least 0"),
        ({"free_seconds": "1"}, "free_seconds: expected a whole number"),
        ({"max_session_seconds": True}, "max_session_seconds: expected a whole number"),
        ({"max_session_seconds": 10**9}, "max_session_seconds: must be at most 2678400"),
    ],
)
def test_a_prepared_session_takes_what_the_card_would(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadMessageError) as caught:
        terms_with(CHAT, **changes)
    assert caught.value.message.startswith(message)


def test_packages_and_allotments() -> None:
    card = parse_rate_card(
        {
            "packages": {
                "starter": {
                    "name": "Starter",
                    "credits": "50",
                    "price": "9.90 EUR",
                    "expires_days": 365,
                },
                "bare": {"credits": "0.5"},
            },
            "tiers": {"pro": {"allotment": "100"}, "free": {}},
        }
    )
    assert card.package("starter") == Package("Starter", 50_000_000, "9.90 EUR", 365)
    assert card.package("bare") == Package("bare", 500_000)
    assert card.allotments == {"pro": 100_000_000}
    with pytest.raises(BadMessageError, match="unknown package 'stater', did you mean 'starter'"):
        card.package("stater")


@pytest.mark.parametrize(
    ("package", "problem"),
    [
        ({}, "packages.p.credits: missing"),
        ({"credits": "0"}, "packages.p.credits: must be more than 0"),
        ({"credits": "1", "expires_days": 0}, "packages.p.expires_days: must be at least 1"),
        ({"credits": "1", "name": ""}, "packages.p.name: expected 1-256 characters"),
        ({"credits": "1", "cost": "1"}, "packages.p.cost: unknown key 'cost'"),
    ],
)
def test_a_package_that_is_wrong(package: dict[str, object], problem: str) -> None:
    with pytest.raises(RateCardError, match=problem):
        parse_rate_card({"packages": {"p": package}})


def test_an_allotment_that_is_wrong() -> None:
    with pytest.raises(RateCardError, match=r"tiers\.pro\.allotment: must not be negative"):
        parse_rate_card({"tiers": {"pro": {"allotment": "-1"}}})
