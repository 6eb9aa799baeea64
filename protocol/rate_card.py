"""The rate card: prices of kinds and operations (PROTOCOL section 3).

The caller passes parsed TOML, because this floor opens no files. A card is accepted as a whole or
not at all, and all its mistakes are reported at once, each under the name of its key. An unknown
key is a mistake too: a misspelt price would otherwise count as a price of 0.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast

import msgspec

from protocol import limits
from protocol.metering.terms import Clock, Enforce, FreeScope, Gap, Terms
from protocol.wire.errors import BadMessageError, ErrorCode, PeerError
from protocol.wire.fields import ID_TEXT, is_id
from protocol.wire.money import parse_credits

SECOND_MS = 1_000

Value = TypeVar("Value")
Reader = Callable[[object, str], Value]
"""Converts the card's value under a name, or raises BadMessageError."""


class RateCardError(ValueError):
    """The rate card is not usable.

    ``problems`` has one sentence for each mistake.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("the rate card has mistakes:\n  " + "\n  ".join(self.problems))


class Package(msgspec.Struct, frozen=True):
    """Credits that are sold together and granted under the package's name."""

    name: str
    credits_micros: int
    price: str | None = None
    """The selling price, in any currency. Pages show it; Taximeter does not read it."""
    expires_days: int | None = None
    """Days after which the unused credits of the package expire; None: never."""


class RateCard(msgspec.Struct, frozen=True):
    """The prices of everything that is sold. Read with :func:`parse_rate_card`."""

    kinds: dict[str, Terms]
    operations: dict[str, int]
    """Micro-credits for each named operation."""
    tiers: dict[str, dict[str, int]]
    """Most operations of a tier in a month; an operation without an entry has no bound."""
    packages: dict[str, Package] = {}
    allotments: dict[str, int] = {}
    """Micro-credits that a tier gives each month. They expire at the end of the month."""

    def terms(self, kind: str) -> Terms:
        """Returns the terms of a kind; an unknown kind raises ``unknown_kind``."""
        terms = self.kinds.get(kind)
        if terms is None:
            raise PeerError(ErrorCode.UNKNOWN_KIND, f"kind: {_unknown('kind', kind, self.kinds)}")
        return terms

    def operation_micros(self, operation: str) -> int:
        """Returns an operation's price; an unknown operation raises :class:`BadMessageError`."""
        micros = self.operations.get(operation)
        if micros is None:
            raise BadMessageError(f"operation: {_unknown('operation', operation, self.operations)}")
        return micros

    def package(self, package_id: str) -> Package:
        """Returns a package by its id; an unknown id raises :class:`BadMessageError`."""
        package = self.packages.get(package_id)
        if package is None:
            raise BadMessageError(f"package: {_unknown('package', package_id, self.packages)}")
        return package

    def operations_per_month(self, tier: str | None, operation: str) -> int | None:
        """Returns how often a month allows ``tier`` the ``operation``; None: no bound.

        For a tier that the card does not name, the credits are the only bound.
        """
        return self.tiers.get(tier or "", {}).get(operation)


def parse_rate_card(data: Mapping[str, Any]) -> RateCard:
    """Reads a rate card from parsed TOML.

    Raises :class:`RateCardError` with all problems, each named by its key, such as
    ``kinds.chat.increment_seconds[1]: must be at least 1``.
    """
    parsing = _Parsing()
    card = parsing.table(data, "", ("kinds", "operations", "packages", "tiers"))
    kinds = parsing.names(card.get("kinds", {}), "kinds", limits.KINDS_MAX)
    operations = parsing.names(card.get("operations", {}), "operations", limits.OPERATIONS_MAX)
    packages = parsing.names(card.get("packages", {}), "packages", limits.PACKAGES_MAX)
    tiers = {
        tier: parsing.table(value, f"tiers.{tier}", ("operations_per_month", "allotment"))
        for tier, value in parsing.names(card.get("tiers", {}), "tiers", limits.TIERS_MAX).items()
    }
    result = RateCard(
        kinds={kind: _parse_kind(parsing, kind, value) for kind, value in kinds.items()},
        operations={
            operation: parsing.read(operations, "operations", operation, _amount, 0)
            for operation in operations
        },
        tiers={
            tier: _parse_tier(parsing, f"tiers.{tier}", table, operations)
            for tier, table in tiers.items()
        },
        packages={
            package: _parse_package(parsing, package, value) for package, value in packages.items()
        },
        allotments={
            tier: parsing.read(table, f"tiers.{tier}", "allotment", _amount, 0)
            for tier, table in tiers.items()
            if "allotment" in table
        },
    )
    if parsing.problems:
        raise RateCardError(parsing.problems)
    return result


def terms_with(
    terms: Terms,
    *,
    credits_per_minute: object = None,
    free_seconds: object = None,
    max_session_seconds: object = None,
) -> Terms:
    """Returns ``terms`` with the values of one prepared session.

    None leaves a value unchanged. The values are as they came over the wire. Raises
    :class:`BadMessageError`, with the name of the value, for a value that the rate card would not
    accept either.
    """
    changes: dict[str, int] = {}
    if credits_per_minute is not None:
        changes["price_micros"] = _price(credits_per_minute, "credits_per_minute")
    if free_seconds is not None:
        changes["free_ms"] = _free(free_seconds, "free_seconds")
    if max_session_seconds is not None:
        changes["session_cap_ms"] = _cap(max_session_seconds, "max_session_seconds")
    return msgspec.structs.replace(terms, **changes)


# --- Readers of single values --------------------------------------------------------


def _seconds(ms_min: int, ms_max: int) -> Reader[int]:
    """Returns a reader of bounded whole seconds; its results are milliseconds."""
    whole = _integer(-(-ms_min // SECOND_MS), ms_max // SECOND_MS)
    return lambda value, name: whole(value, name) * SECOND_MS


def _integer(low: int, high: int) -> Reader[int]:
    def read(value: object, name: str) -> int:
        # A bool is an int in Python, but `true` is no number of seconds.
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadMessageError(f"{name}: expected a whole number")
        if value < low:
            raise BadMessageError(f"{name}: must be at least {low}")
        if value > high:
            raise BadMessageError(f"{name}: must be at most {high}")
        return value

    return read


def _choice(*choices: str) -> Reader[str]:
    def read(value: object, name: str) -> str:
        if value not in choices:
            raise BadMessageError(f"{name}: must be one of {', '.join(choices)}")
        return str(value)

    return read


def _boolean(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadMessageError(f"{name}: expected true or false")
    return value


def _price(value: object, name: str) -> int:
    return parse_credits(value, name=name, micros_max=limits.PRICE_MICROS_MAX)


def _amount(value: object, name: str) -> int:
    return parse_credits(value, name=name)


def _positive(value: object, name: str) -> int:
    micros = _amount(value, name)
    if micros == 0:
        raise BadMessageError(f"{name}: must be more than 0")
    return micros


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limits.REASON_CHARACTERS_MAX:
        raise BadMessageError(f"{name}: expected 1-{limits.REASON_CHARACTERS_MAX} characters")
    return value


def _increments(value: object, name: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise BadMessageError(f"{name}: expected two numbers, the first and each further one")
    first, further = (_increment(part, f"{name}[{i}]") for i, part in enumerate(value))
    return first, further


def _warnings(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise BadMessageError(f"{name}: expected a list of seconds")
    if len(value) > limits.WARNINGS_MAX:
        raise BadMessageError(f"{name}: has more than {limits.WARNINGS_MAX} entries")
    thresholds = [_warning(part, f"{name}[{i}]") for i, part in enumerate(value)]
    if len(set(thresholds)) < len(thresholds):
        raise BadMessageError(f"{name}: has the same threshold twice")
    return tuple(sorted(thresholds, reverse=True))


def _tick(value: object, name: str) -> int:
    """Reads seconds with decimals, because ticks may come four times a second."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadMessageError(f"{name}: expected a number of seconds")
    if not limits.TICK_MS_MIN <= value * SECOND_MS <= limits.TICK_MS_MAX:
        low, high = limits.TICK_MS_MIN / SECOND_MS, limits.TICK_MS_MAX // SECOND_MS
        raise BadMessageError(f"{name}: must be between {low} and {high}")
    return round(value * SECOND_MS)


_free = _seconds(0, limits.FREE_MS_MAX)
_cap = _seconds(0, limits.SESSION_CAP_MS_MAX)
_increment = _seconds(SECOND_MS, limits.INCREMENT_MS_MAX)
_warning = _seconds(SECOND_MS, limits.WARN_AT_MS_MAX)
_tolerance = _seconds(0, limits.TOLERANCE_MS_MAX)


# --- Tables ----------------------------------------------------------------------------


class _Parsing:
    """One reading of a card. Collects mistakes and continues."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def table(self, value: object, path: str, keys: Iterable[str]) -> dict[str, Any]:
        """Returns ``value`` if it is a table, else an empty one.

        Reports a value that is no table, and each key that is not in ``keys``.
        """
        if not isinstance(value, Mapping):
            self.problems.append(f"{path}: expected a table")
            return {}
        keys = tuple(keys)
        for key in value:
            if key not in keys:
                self.problems.append(f"{_join(path, key)}: {_unknown('key', key, keys)}")
        return dict(value)

    def names(self, value: object, path: str, count_max: int) -> dict[str, Any]:
        """Returns a table whose keys are names that the card's owner chooses."""
        if not isinstance(value, Mapping):
            self.problems.append(f"{path}: expected a table")
            return {}
        if len(value) > count_max:
            self.problems.append(f"{path}: has more than {count_max} entries")
        for name in value:
            if not is_id(name):
                self.problems.append(f"{_join(path, name)}: a name is {ID_TEXT}")
        return dict(value)

    def read(
        self, table: Mapping[str, Any], path: str, key: str, reader: Reader[Value], default: Value
    ) -> Value:
        """Returns the value under ``key``; ``default`` when it is missing or wrong."""
        if key not in table:
            return default
        try:
            return reader(table[key], _join(path, key))
        except BadMessageError as error:
            self.problems.append(error.message)
            return default


_KIND_KEYS = (
    "free_seconds",
    "free_scope",
    "credits_per_minute",
    "increment_seconds",
    "counts_minutes",
    "warn_at_seconds",
    "stop_grace_seconds",
    "reconnect_grace_seconds",
    "gap",
    "max_session_seconds",
    "tick_seconds",
    "speed",
    "max_live_sessions",
    "clock",
    "tolerance_seconds",
    "enforce",
)


def _parse_kind(parsing: _Parsing, kind: str, value: object) -> Terms:
    """Reads a kind; keys left out get the defaults of PROTOCOL's example.

    There are two exceptions: without ``free_seconds`` nothing is free, and there is no default
    price.
    """
    path = f"kinds.{kind}"
    table = parsing.table(value, path, _KIND_KEYS)
    if "credits_per_minute" not in table:
        parsing.problems.append(f'{path}.credits_per_minute: missing (write "0" for nothing)')

    def read(key: str, reader: Reader[Value], default: Value) -> Value:
        return parsing.read(table, path, key, reader, default)

    clock = cast(Clock, read("clock", _choice("server", "provider"), "server"))
    _check_clock(parsing, path, table, clock)
    first_ms, next_ms = read("increment_seconds", _increments, (SECOND_MS, SECOND_MS))
    return Terms(
        kind=kind,
        price_micros=read("credits_per_minute", _price, 0),
        free_ms=read("free_seconds", _free, 0),
        free_scope=cast(
            FreeScope, read("free_scope", _choice("session", "pair", "day"), "session")
        ),
        first_increment_ms=first_ms,
        next_increment_ms=next_ms,
        counts_minutes=read("counts_minutes", _boolean, False),
        warn_at_ms=read("warn_at_seconds", _warnings, (600_000, 300_000, 60_000)),
        stop_grace_ms=read("stop_grace_seconds", _seconds(0, limits.STOP_GRACE_MS_MAX), 15_000),
        reconnect_grace_ms=read(
            "reconnect_grace_seconds", _seconds(0, limits.RECONNECT_GRACE_MS_MAX), 30_000
        ),
        gap=cast(Gap, read("gap", _choice("skip", "bill"), "skip")),
        session_cap_ms=read("max_session_seconds", _cap, 0),
        tick_ms=read("tick_seconds", _tick, limits.TICK_MS_DEFAULT),
        speed=read("speed", _integer(1, limits.SPEED_MAX), 1),
        max_live_sessions=read(
            "max_live_sessions", _integer(0, limits.LIVE_SESSIONS_PER_ACCOUNT_MAX), 0
        ),
        clock=clock,
        tolerance_ms=read("tolerance_seconds", _tolerance, 2_000),
        enforce=cast(Enforce, read("enforce", _choice("none", "participant", "call"), "none")),
    )


def _check_clock(parsing: _Parsing, path: str, table: Mapping[str, Any], clock: str) -> None:
    """Reports keys that contradict the kind's clock."""
    if clock == "provider":
        if table.get("gap", "skip") != "skip":
            parsing.problems.append(f"{path}.gap: an absence from a call is never billed")
        if table.get("speed", 1) != 1:
            parsing.problems.append(f"{path}.speed: an outside clock has one speed")
    elif table.get("enforce", "none") in ("participant", "call"):
        parsing.problems.append(f'{path}.enforce: only for kinds with clock = "provider"')


def _parse_tier(
    parsing: _Parsing, path: str, tier: Mapping[str, Any], operations: Mapping[str, Any]
) -> dict[str, int]:
    path = f"{path}.operations_per_month"
    counts = parsing.table(tier.get("operations_per_month", {}), path, operations)
    reader = _integer(0, limits.OPERATIONS_PER_MONTH_MAX)
    return {
        operation: parsing.read(counts, path, operation, reader, 0)
        for operation in counts
        if operation in operations
    }


def _parse_package(parsing: _Parsing, package: str, value: object) -> Package:
    path = f"packages.{package}"
    table = parsing.table(value, path, ("name", "credits", "price", "expires_days"))
    if "credits" not in table:
        parsing.problems.append(f"{path}.credits: missing")
    days = _integer(1, limits.PACKAGE_DAYS_MAX)
    return Package(
        name=parsing.read(table, path, "name", _text, package),
        credits_micros=parsing.read(table, path, "credits", _positive, 0),
        price=parsing.read(table, path, "price", _text, "") or None,
        expires_days=parsing.read(table, path, "expires_days", days, 0) or None,
    )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Returns ``unknown kind 'chta', did you mean 'chat'?``."""
    near = get_close_matches(name, list(known), n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name[:64]!r}{hint}"
