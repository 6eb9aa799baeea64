"""The one grammar of filters for live sessions (PROTOCOL section 4).

A filter is words with spaces between: ``user:u17 kind:call,chat -state:paused age:>10m``. A word
is a field, a colon and values; a session must match every word. Commas between values mean "or",
``-`` before a word means "not". Quotes keep spaces and commas in a value; in quotes, ``\\`` keeps
the next character. ``""`` matches what is missing. Every place with filters uses this parser.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol, get_args

import msgspec

from protocol import limits
from protocol.wire.errors import BadMessageError
from protocol.wire.fields import LimitName, StateName
from protocol.wire.money import parse_credits

UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,9})(ms|s|m|h|d)")
_COMPARISON = re.compile(r"(<=|>=|<|>)(.*)", re.DOTALL)
_PLAIN = re.compile(r"[^\s,\"]+")
_NAME = re.compile(r"(-?)([A-Za-z][A-Za-z0-9_.-]*):")
_COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    "<": lambda found, bound: found < bound,
    "<=": lambda found, bound: found <= bound,
    ">": lambda found, bound: found > bound,
    ">=": lambda found, bound: found >= bound,
}


class Filtered(Protocol):
    """A live session, as a filter sees it."""

    @property
    def session_id(self) -> str:
        """The session."""

    @property
    def user_id(self) -> str:
        """Its user."""

    @property
    def org_id(self) -> str | None:
        """The organisation; None: the user has none."""

    @property
    def account_id(self) -> str:
        """The credit account."""

    @property
    def kind(self) -> str:
        """The kind of the rate card."""

    @property
    def state(self) -> str:
        """Its state."""

    @property
    def limit(self) -> str | None:
        """The limit that binds first."""

    @property
    def started_at(self) -> int:
        """When it started, in epoch milliseconds."""

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What it was given at its start."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The processes with sockets of it."""

    def credits_at(self, now_ms: int) -> int:
        """The account's balance at an instant, in micro-credits."""


class BadFilterError(ValueError):
    """Text that is no filter.

    ``token`` is the part that is wrong, ``at`` its first character's index.
    """

    def __init__(self, message: str, token: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.token = token
        self.at = at


class FilterValue(NamedTuple):
    """A value of a word; ``is_quoted`` values are never comparisons."""

    text: str
    at: int
    is_quoted: bool

    def canonical(self) -> str:
        """The value as a filter has it, in quotes if necessary."""
        is_plain = _PLAIN.fullmatch(self.text) and not _COMPARISON.match(self.text)
        if is_plain or not self.is_quoted:
            return self.text
        return '"' + self.text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class FilterWord(NamedTuple):
    """A word: whether it is negated, its field, and its values."""

    is_negated: bool
    field: str
    values: tuple[FilterValue, ...]

    def canonical(self) -> str:
        """The word, with its values in order."""
        values = ",".join(sorted({value.canonical() for value in self.values}))
        return f"{'-' * self.is_negated}{self.field}:{values}"


Test = Callable[[Filtered, int], bool]
"""Whether a session matches at an instant, in epoch milliseconds."""


class RowFilter:
    """A filter that was read; equal filters have one ``text``."""

    def __init__(self, words: Iterable[FilterWord]) -> None:
        read = {word.canonical(): word for word in words}
        self.text = " ".join(sorted(read))
        """The filter in one form for all ways to write it."""
        self._tests = [(word.is_negated, _test_of(word)) for word in read.values()]
        self.changes_with_time = any(word.field in ("age", "credits") for word in read.values())
        """Whether a session may begin or cease to match while nothing happens."""

    def matches(self, row: Filtered, now_ms: int) -> bool:
        """Whether a session matches every word at ``now_ms``."""
        return all(test(row, now_ms) is not negated for negated, test in self._tests)


def parse_filter(text: str) -> RowFilter:
    """Reads a filter; the empty one matches every session.

    Raises :class:`BadFilterError`, which names the token and its place.
    """
    if len(text) > limits.FILTER_CHARACTERS_MAX:
        at = limits.FILTER_CHARACTERS_MAX
        message = f"a filter has at most {limits.FILTER_CHARACTERS_MAX} characters"
        raise BadFilterError(message, text[at : at + limits.FILTER_TOKEN_SHOWN_MAX], at)
    words: list[FilterWord] = []
    at = _skip_spaces(text, 0)
    while at < len(text):
        if len(words) == limits.FILTER_WORDS_MAX:
            raise _error(text, at, f"a filter has at most {limits.FILTER_WORDS_MAX} words")
        word, at = _read_word(text, at)
        words.append(word)
        at = _skip_spaces(text, at)
    return RowFilter(words)


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _error(text: str, at: int, message: str) -> BadFilterError:
    found = re.compile(r"\S*").match(text, at)
    token = found[0] if found is not None else ""
    return BadFilterError(message, token[: limits.FILTER_TOKEN_SHOWN_MAX], at)


def _read_word(text: str, at: int) -> tuple[FilterWord, int]:
    named = _NAME.match(text, at)
    if named is None:
        raise _error(text, at, "expected a field, a colon and a value, as in user:ann")
    negated, field = bool(named[1]), named[2]
    if field not in _TESTS and not (field.startswith("meta.") and len(field) > len("meta.")):
        known = ", ".join((*_TESTS, "meta.NAME"))
        raise _error(text, at, f"no field {field[:32]}: the fields are {known}")
    values: list[FilterValue] = []
    at = named.end()
    while True:
        if len(values) == limits.FILTER_VALUES_MAX:
            raise _error(text, at, f"a word has at most {limits.FILTER_VALUES_MAX} values")
        value, at = _read_value(text, at)
        values.append(value)
        if text[at : at + 1] != ",":
            break
        at += 1
    if at < len(text) and not text[at].isspace():
        raise _error(text, at, "expected a space or a comma after a value")
    word = FilterWord(negated, field, tuple(values))
    _test_of(word)  # reads each value, so that a wrong one is named here
    return word, at


def _read_value(text: str, at: int) -> tuple[FilterValue, int]:
    if text[at : at + 1] == '"':
        return _read_quoted(text, at)
    plain = _PLAIN.match(text, at)
    if plain is None:
        raise _error(text, at, 'expected a value; "" matches what is missing')
    return FilterValue(plain[0], at, is_quoted=False), plain.end()


def _read_quoted(text: str, at: int) -> tuple[FilterValue, int]:
    characters: list[str] = []
    index = at + 1
    while index < len(text) and text[index] != '"':
        if text[index] == "\\":
            index += 1
        characters.append(text[index : index + 1])
        index += 1
    if index >= len(text):
        raise _error(text, at, "the quotes have no end")
    return FilterValue("".join(characters), at, is_quoted=True), index + 1


# --- Fields ---------------------------------------------------------------------------


def _test_of(word: FilterWord) -> Test:
    if word.field.startswith("meta."):
        return _metadata(word.field.removeprefix("meta."), word)
    return _TESTS[word.field](word)


def _texts(word: FilterWord) -> frozenset[str]:
    return frozenset(value.text for value in word.values)


def _text_field(read: Callable[[Filtered], str | None]) -> Callable[[FilterWord], Test]:
    def test_of(word: FilterWord) -> Test:
        wanted = _texts(word)
        return lambda row, _: (read(row) or "") in wanted

    return test_of


def _name_field(
    read: Callable[[Filtered], str | None], names: Iterable[str]
) -> Callable[[FilterWord], Test]:
    known = tuple(names)

    def test_of(word: FilterWord) -> Test:
        for value in word.values:
            if value.text and value.text not in known:
                message = f"{word.field} is one of {', '.join(known)}"
                raise BadFilterError(message, value.text, value.at)
        return _text_field(read)(word)

    return test_of


def _nodes(word: FilterWord) -> Test:
    wanted = _texts(word)
    return lambda row, _: any(node in wanted for node in row.nodes or ("",))


def _age(word: FilterWord) -> Test:
    tests = [_bound(value, _duration_ms, "an age, as in >10m") for value in word.values]
    return lambda row, now_ms: any(test(now_ms - row.started_at) for test in tests)


def _credits(word: FilterWord) -> Test:
    tests = [_bound(value, _micros, "credits, as in <5") for value in word.values]

    def matches(row: Filtered, now_ms: int) -> bool:
        micros = row.credits_at(now_ms)
        return any(test(micros) for test in tests)

    return matches


def _bound(value: FilterValue, read: Callable[[str], int], expected: str) -> Callable[[int], bool]:
    compared = None if value.is_quoted else _COMPARISON.fullmatch(value.text)
    if compared is None:
        raise BadFilterError(f"expected <, <=, > or >= and {expected}", value.text, value.at)
    try:
        bound = read(compared[2])
    except ValueError:
        raise BadFilterError(f"expected {expected}", value.text, value.at) from None
    compare = _COMPARE[compared[1]]
    return lambda found: compare(found, bound)


def _duration_ms(text: str) -> int:
    read = _DURATION.fullmatch(text)
    if read is None:
        raise ValueError(text)
    return int(read[1]) * UNITS[read[2]]


def _micros(text: str) -> int:
    try:
        return parse_credits(text, signed=True)
    except BadMessageError as error:
        raise ValueError(text) from error


def _metadata(name: str, word: FilterWord) -> Test:
    wanted = _texts(word)
    return lambda row, _: _shown((row.metadata or {}).get(name)) in wanted


def _shown(value: object) -> str:
    """A metadata value as a filter names it: a text, or JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _tag(word: FilterWord) -> Test:
    wanted = _texts(word)

    def matches(row: Filtered, _: int) -> bool:
        tags = (row.metadata or {}).get("tags")
        found = [_shown(tag) for tag in tags] if isinstance(tags, list) else []
        return any(tag in wanted for tag in found or ("",))

    return matches


_TESTS: Final[dict[str, Callable[[FilterWord], Test]]] = {
    "session": _text_field(lambda row: row.session_id),
    "user": _text_field(lambda row: row.user_id),
    "org": _text_field(lambda row: row.org_id),
    "account": _text_field(lambda row: row.account_id),
    "kind": _text_field(lambda row: row.kind),
    "state": _name_field(lambda row: row.state, get_args(StateName)),
    "limit": _name_field(lambda row: row.limit, get_args(LimitName)),
    "node": _nodes,
    "age": _age,
    "credits": _credits,
    "tag": _tag,
}
