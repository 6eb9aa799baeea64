"""Filters of live sessions: their matches and their errors."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.wire.filters import BadFilterError, parse_filter


class FilteredSession(msgspec.Struct, frozen=True):
    """A session to filter."""

    session_id: str = "chat-1"
    user_id: str = "ann"
    org_id: str | None = "acme"
    account_id: str = "ann"
    kind: str = "chat"
    state: str = "active"
    limit: str | None = None
    started_at: int = 0
    metadata: dict[str, Any] | None = None
    nodes: tuple[str, ...] = ("web-1",)
    credits_micros: int = 5_000_000

    def credits_at(self, now_ms: int) -> int:
        return self.credits_micros - now_ms


NOW_MS = 600_000
PLAIN = FilteredSession()


@pytest.mark.parametrize(
    ("text", "session", "matches"),
    [
        ("", PLAIN, True),
        ("  user:ann  ", PLAIN, True),
        ("user:ann,ben", PLAIN, True),
        ("user:ben", PLAIN, False),
        ("-user:ben", PLAIN, True),
        ("user:ann -kind:chat", PLAIN, False),
        ("user:ann kind:call,chat state:active", PLAIN, True),
        ("session:chat-1 account:ann org:acme", PLAIN, True),
        ('org:""', PLAIN, False),
        ('org:""', FilteredSession(org_id=None), True),
        ('limit:"" -limit:credits', PLAIN, True),
        ("limit:credits", FilteredSession(limit="credits"), True),
        ("node:web-2,web-1", PLAIN, True),
        ('node:""', FilteredSession(nodes=()), True),
        ('-node:""', PLAIN, True),
        ("age:>10m", PLAIN, False),
        ("age:>=10m", PLAIN, True),
        ("age:<1h", PLAIN, True),
        ("age:>599999ms", PLAIN, True),
        ("age:<1s,>9m", PLAIN, True),
        ("credits:<5", PLAIN, True),
        ("credits:<=4.4", PLAIN, True),
        ("credits:<4.4", PLAIN, False),
        ("credits:<-1", FilteredSession(credits_micros=-1_000_001), True),
        ('meta.room:"a b"', FilteredSession(metadata={"room": "a b"}), True),
        ('meta.room:"a \\"b\\""', FilteredSession(metadata={"room": 'a "b"'}), True),
        ("meta.room:a:b", FilteredSession(metadata={"room": "a:b"}), True),
        ("meta.floor:3", FilteredSession(metadata={"floor": 3}), True),
        ("meta.vip:true", FilteredSession(metadata={"vip": True}), True),
        ('meta.room:""', PLAIN, True),
        ("tag:test", FilteredSession(metadata={"tags": ["a", "test"]}), True),
        ("-tag:test", FilteredSession(metadata={"tags": ["a"]}), True),
        ("-tag:test", PLAIN, True),
        ('tag:""', FilteredSession(metadata={"tags": "test"}), True),
    ],
)
def test_a_filter_matches_what_it_says(text: str, session: FilteredSession, matches: bool) -> None:
    assert parse_filter(text).matches(session, NOW_MS) is matches


@pytest.mark.parametrize(
    ("text", "token", "at"),
    [
        ("ann", "ann", 0),
        ("user:ann colour:red", "colour:red", 9),
        ("user:", "", 5),
        ("user:ann,", "", 9),
        ("user:ann,,ben", ",ben", 9),
        (":ann", ":ann", 0),
        ('user:"ann', '"ann', 5),
        ('user:"ann\\', '"ann\\', 5),
        ('user:"ann"ben', "ben", 10),
        ("--user:ann", "--user:ann", 0),
        ("age:10m", "10m", 4),
        ("age:>10", ">10", 4),
        ("age:>10x", ">10x", 4),
        ('age:">10m"', ">10m", 4),
        ("kind:chat age:>1m,soon", "soon", 18),
        ("credits:5", "5", 8),
        ("credits:<five", "<five", 8),
        ("credits:<0.0000001", "<0.0000001", 8),
        ("state:activ", "activ", 6),
        ("limit:money", "money", 6),
        ("meta.:x", "meta.:x", 0),
    ],
)
def test_a_bad_filter_names_its_token(text: str, token: str, at: int) -> None:
    with pytest.raises(BadFilterError) as raised:
        parse_filter(text)
    assert (raised.value.token, raised.value.at) == (token, at)


@pytest.mark.parametrize(
    "text",
    [
        "x" * (limits.FILTER_CHARACTERS_MAX + 1),
        " ".join(f"user:u{number}" for number in range(limits.FILTER_WORDS_MAX + 1)),
        "user:" + ",".join(str(number) for number in range(limits.FILTER_VALUES_MAX + 1)),
    ],
)
def test_a_filter_has_bounds(text: str) -> None:
    with pytest.raises(BadFilterError, match="at most") as raised:
        parse_filter(text)
    assert len(raised.value.token) <= limits.FILTER_TOKEN_SHOWN_MAX


@pytest.mark.parametrize(
    "same",
    [
        ("user:ann kind:chat", "kind:chat   user:ann", "user:ann user:ann kind:chat"),
        ("kind:chat,call", "kind:call,chat,call", 'kind:"call",chat'),
    ],
)
def test_equal_filters_have_one_text(same: tuple[str, ...]) -> None:
    assert len({parse_filter(text).text for text in same}) == 1


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.booleans())
def test_any_value_in_quotes_matches_itself_and_keeps_its_meaning(
    values: list[str], negated: bool
) -> None:
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    text = f"{'-' * negated}meta.x:" + ",".join(f'"{value}"' for value in quoted)
    read = parse_filter(text)
    for value in values:
        session = FilteredSession(metadata={"x": value})
        assert read.matches(session, 0) is not negated
        assert parse_filter(read.text).matches(session, 0) is not negated
    assert parse_filter(read.text).text == read.text


@given(st.text(alphabet='user:kindage<>=,-"\\ 1mt.', max_size=40))
def test_any_text_is_a_filter_or_a_named_error(text: str) -> None:
    found = named_error(text)
    if found is None:
        canonical = parse_filter(text).text
        assert parse_filter(canonical).text == canonical
    else:
        assert text[found.at :].startswith(found.token)


def named_error(text: str) -> BadFilterError | None:
    """The error of a bad filter."""
    try:
        parse_filter(text)
    except BadFilterError as error:
        return error
    return None


def test_only_age_and_credits_change_with_time() -> None:
    assert parse_filter("user:ann -age:<5m").changes_with_time
    assert parse_filter("credits:<5").changes_with_time
    assert not parse_filter("user:ann state:active").changes_with_time
