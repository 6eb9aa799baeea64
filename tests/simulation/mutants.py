"""Mutants: the scripts of ``storage/redis/lua``, each with one place broken by rule.

A mutant is one change of one script. The rules:

``deleted``    a write does nothing; where its answer is used, the answer is that of a write that
               changed nothing
``pretended``  a write does nothing and answers as if it had changed something
``inverted``   a write does the opposite (adds what it takes, removes a member, lets a key live),
               a comparison says the opposite
``ignored``    a comparison has no say: what stands beside it decides, or it never holds
``negated``    a condition without a comparison says the opposite

A mutant's name is its script, line, column and rule. Lines move when a script is edited, so a
mutant that is written down (``survivors.toml``) is found by its script, rule and text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import storage.redis.scripts

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<string>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")
  | (?P<number>0x[0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign>\.\.\.|\.\.|==|~=|<=|>=|[-+*/%^\#<>=(){}\[\];:,.])
    """,
    re.VERBOSE,
)
COMPARISONS = {"==": "~=", "~=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_KEYWORDS = {
    "and", "break", "do", "else", "elseif", "end", "for", "function", "if", "in", "local", "not",
    "or", "repeat", "return", "then", "until", "while",
}  # fmt: skip
_OPENING = {"(": ")", "[": "]", "{": "}"}
_BEFORE_A_VALUE = {
    *COMPARISONS, "=", "(", ",", "{", "[", "..", "+", "-", "*", "/", "%", "^", "#",
    "and", "or", "not", "return", "if", "elseif", "while", "until", "in",
}  # fmt: skip
"""Tokens that stand before an expression. A call after any other token is a statement."""
_AFTER_A_VALUE = {")", "]", "}", ",", ";", "=", *COMPARISONS}

_ANSWERS = {"XADD": "'0-0'"}
"""The answer of a write that was not made, where that answer is not 0."""
_COUNTING = {"HINCRBY", "HSETNX", "HDEL", "XDEL"}
"""Writes that answer whether, or how much, they have changed."""
_READS = {
    "EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HVALS", "INFO",
    "LINDEX", "LLEN", "LRANGE", "MGET", "PTTL", "SCARD", "SISMEMBER", "SMEMBERS", "SMISMEMBER",
    "STRLEN", "TIME", "TTL", "TYPE", "XINFO", "XLEN", "XPENDING", "XRANGE", "XREVRANGE", "ZCARD",
    "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE", "ZSCORE",
}  # fmt: skip
"""Commands that change nothing; any other command is a write."""
_PUBLISH = "PUBLISH"


class Token(NamedTuple):
    """A token of Lua, and its place."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """The index after the token's last character."""
        return self.start + len(self.text)


def tokens(text: str) -> list[Token]:
    """The tokens of a script, without spaces and comments."""
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None, text[at : at + 40]
        kind = match.lastgroup or ""
        if kind == "name" and match.group() in _KEYWORDS:
            kind = "keyword"
        if kind != "space":
            found.append(Token(kind, match.group(), at))
        at = match.end()
    return found


@dataclass(frozen=True)
class Mutant:
    """A script in which one piece is replaced."""

    script: str
    line: int
    column: int
    rule: str
    start: int
    end: int
    piece: str
    """The text that is replaced."""
    replacement: str
    code: str
    """The text of its line, without spaces around."""
    ordinal: int
    """How many mutants with the same script, rule, line's text and piece come before this one."""
    number: int = 0
    """The number of its piece, counted over all scripts."""

    @property
    def name(self) -> str:
        """The mutant's place and rule."""
        return f"{self.script}.lua:{self.line}:{self.column} {self.rule}"

    @property
    def anchor(self) -> tuple[str, str, str, str, int]:
        """What identifies the mutant in an edited script."""
        return self.script, self.rule, self.code, " ".join(self.piece.split()), self.ordinal

    def applied(self, text: str) -> str:
        """The script with the change."""
        assert text[self.start : self.end] == self.piece, self.name
        return text[: self.start] + self.replacement + text[self.end :]


class MutationSite(NamedTuple):
    """A part of a script that rules change.

    It is a write, a comparison or a condition.
    """

    start: int
    end: int
    at: int
    """The place that is reported: the beginning of the write, or the comparison's sign."""
    changes: tuple[tuple[str, str], ...]
    """Rules, and what each puts in place of the piece."""


def mutants(script: str, text: str, first: int = 0) -> list[Mutant]:
    """All mutants of a script, in text order.

    The script's pieces count from ``first``.
    """
    made: list[Mutant] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for number, site in enumerate(sites(text), first):
        piece = text[site.start : site.end]
        begin = text.rfind("\n", 0, site.at) + 1
        line = text.count("\n", 0, site.at) + 1
        code = text[begin : text.find("\n", begin)].strip()
        for rule, replacement in site.changes:
            key = rule, code, piece
            made.append(
                Mutant(
                    script, line, site.at - begin + 1, rule, site.start, site.end, piece,
                    replacement, code, seen[key], number,
                )
            )  # fmt: skip
            seen[key] += 1
    return made


def all_mutants(directory: Path = storage.redis.scripts.LUA_DIR) -> list[Mutant]:
    """The mutants of every script, by the scripts' names."""
    made: list[Mutant] = []
    first = 0
    for path in sorted(directory.glob("*.lua")):
        text = path.read_text()
        made += mutants(path.stem, text, first)
        first += len(sites(text))
    return made


def sites(text: str) -> list[MutationSite]:
    """The pieces of a script that rules change, in order."""
    words = tokens(text)
    found = [*_writes(text, words), *_comparisons(text, words), *_conditions(text, words)]
    return sorted(found, key=lambda site: (site.start, -site.end))


def instrumented(text: str, first: int) -> str:
    """The script whose every piece notes that it was reached.

    The pieces are numbered from ``first``. The script's environment must define ``reached(number,
    value)``, which returns the value.
    """
    opening: dict[int, list[str]] = {}
    closing: dict[int, int] = {}
    for number, site in enumerate(sites(text), first):
        opening.setdefault(site.start, []).append(f"reached({number}, ")
        closing[site.end] = closing.get(site.end, 0) + 1
    parts, last = [], 0
    for at in sorted({*opening, *closing}):
        parts.append(text[last:at])
        parts.append(")" * closing.get(at, 0) + "".join(opening.get(at, ())))
        last = at
    return "".join([*parts, text[last:]])


# --- Writes -----------------------------------------------------------------------------


def _writes(text: str, words: Sequence[Token]) -> Iterator[MutationSite]:
    for index, word in enumerate(words):
        if word.text not in ("call", "pcall") or words[index + 1].text != "(":
            continue
        first = index - 2 if words[index - 1].text == "." else index
        closing = _closing(words, index + 1)
        arguments = [
            text[words[begin].start : words[end - 1].end]
            for begin, end in _arguments(words, index + 1, closing)
        ]
        command = arguments[0].strip("'") if words[index + 2].kind == "string" else _PUBLISH
        if command not in _READS:
            start, end = words[first].start, words[closing].end
            is_statement = first == 0 or words[first - 1].text not in _BEFORE_A_VALUE
            changes = tuple(_changes(text[start:end], command, arguments, is_statement))
            yield MutationSite(start, end, start, changes)


def _changes(
    piece: str, command: str, arguments: list[str], is_statement: bool
) -> Iterator[tuple[str, str]]:
    if is_statement:
        yield "deleted", ""
    else:
        yield "deleted", _ANSWERS.get(command, "0")
        if command in _COUNTING:
            yield "pretended", "1"
    function = piece[: piece.index("(")]
    opposite: list[str] | None = None
    match command:
        case "HINCRBY":
            less = f"string.format('%.0f', 0 - ({arguments[-1]}))"
            opposite = [*arguments[:-1], less]
        case "SADD" | "SREM":
            opposite = ["'SREM'" if command == "SADD" else "'SADD'", *arguments[1:]]
        case "ZADD":
            opposite = ["'ZREM'", arguments[1], arguments[-1]]
        case "ZREM":
            opposite = ["'ZADD'", arguments[1], "0", arguments[2]]
        case "LPUSH":
            opposite = ["'RPUSH'", *arguments[1:]]
        case "PEXPIRE":
            opposite = ["'PERSIST'", arguments[1]]
        case "PERSIST":
            opposite = ["'PEXPIRE'", arguments[1], "1"]
    if opposite is not None:
        yield "inverted", f"{function}({', '.join(opposite)})"


def _closing(words: Sequence[Token], index: int) -> int:
    """The index of the token that closes an opening token."""
    depth = 0
    for at in range(index, len(words)):
        if words[at].text in _OPENING:
            depth += 1
        elif words[at].text in _OPENING.values() and words[at].kind == "sign":
            depth -= 1
            if depth == 0:
                return at
    raise AssertionError(words[index])


def _arguments(words: Sequence[Token], opening: int, closing: int) -> Iterator[tuple[int, int]]:
    begin, depth = opening + 1, 0
    for at in range(opening + 1, closing):
        depth += _depth(words[at])
        if words[at].text == "," and depth == 0:
            yield begin, at
            begin = at + 1
    yield begin, closing


def _depth(word: Token) -> int:
    if word.kind == "sign":
        return (word.text in _OPENING) - (word.text in _OPENING.values())
    return (word.text == "function") - (word.text == "end")


# --- Comparisons ------------------------------------------------------------------------


def _comparisons(text: str, words: Sequence[Token]) -> Iterator[MutationSite]:
    for index, word in enumerate(words):
        if word.text not in COMPARISONS or word.kind != "sign":
            continue
        first, last = _begin(words, index), _end(words, index)
        start, end = words[first].start, words[last].end
        inverted = f"{text[start : word.start]}{COMPARISONS[word.text]}{text[word.end : end]}"
        beside = words[first - 1].text, words[last + 1].text if last + 1 < len(words) else ""
        alone = beside[0] in ("if", "elseif") and beside[1] == "then"
        ignored = "false" if alone or "or" in beside else "true"
        changes = ("inverted", inverted), ("ignored", ignored)
        yield MutationSite(start, end, word.start, changes)


def _begin(words: Sequence[Token], index: int) -> int:
    """The index of the first token of an operator's left operand."""
    depth, at = 0, index - 1
    while at >= 0:
        word = words[at]
        depth -= _depth(word) if word.kind == "sign" else 0
        if depth < 0:
            break
        ends = word.kind == "keyword" and word.text != "not"
        if depth == 0 and (ends or word.text in ("=", ",", ";", *COMPARISONS)):
            break
        at -= 1
    return at + 1


def _end(words: Sequence[Token], index: int) -> int:
    """The index of the last token of an operator's right operand."""
    at, is_whole = index + 1, False
    while at < len(words):
        word = words[at]
        if word.text in _OPENING and word.kind == "sign":
            at, is_whole = _closing(words, at), True
        elif word.kind in ("name", "number", "string"):
            if is_whole and words[at - 1].text not in (".", ":"):
                break
            is_whole = True
        elif (word.kind == "keyword" and word.text != "not") or word.text in _AFTER_A_VALUE:
            break
        else:
            is_whole = word.text in (".", ":")
        at += 1
    return at - 1


# --- Conditions -------------------------------------------------------------------------


def _conditions(text: str, words: Sequence[Token]) -> Iterator[MutationSite]:
    for index, word in enumerate(words):
        if word.text not in ("if", "elseif"):
            continue
        last = next(at for at in range(index, len(words)) if words[at].text == "then") - 1
        if any(one.text in COMPARISONS for one in words[index + 1 : last + 1]):
            continue
        start, end = words[index + 1].start, words[last].end
        yield MutationSite(start, end, start, (("negated", f"not ({text[start:end]})"),))
