"""The rules that make mutants, and the files that name mutants."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

import storage.redis.scripts
from tests.simulation.hunt import cases, survivors
from tests.simulation.mixes import MIXES
from tests.simulation.mutants import Mutant, all_mutants, instrumented, mutants, sites

SCRIPT = """-- a comment: call('DEL', KEYS[9]) == 1
local call = redis.call
if call('EXISTS', KEYS[1]) == 0 then return 'cold' end
if done or #ARGV > 2 and ARGV[1] ~= '' then call('HINCRBY', KEYS[1], 'x', whole(1 - 2)) end
local left = call('HINCRBY', KEYS[1], 'live', -1)
redis.call(ARGV[4], ARGV[5], '1')
if not found then call('SADD', KEYS[2], ARGV[1]) end
return left <= 0
"""


def made(script: str) -> list[tuple[int, str, str, str]]:
    return [(one.line, one.rule, one.piece, one.replacement) for one in mutants("s", script)]


def test_every_write_and_comparison_has_its_mutants() -> None:
    live = "call('HINCRBY', KEYS[1], 'live', -1)"
    assert made(SCRIPT) == [
        (3, "inverted", "call('EXISTS', KEYS[1]) == 0", "call('EXISTS', KEYS[1]) ~= 0"),
        (3, "ignored", "call('EXISTS', KEYS[1]) == 0", "false"),
        (4, "inverted", "#ARGV > 2", "#ARGV <= 2"),
        (4, "ignored", "#ARGV > 2", "false"),
        (4, "inverted", "ARGV[1] ~= ''", "ARGV[1] == ''"),
        (4, "ignored", "ARGV[1] ~= ''", "true"),
        (4, "deleted", "call('HINCRBY', KEYS[1], 'x', whole(1 - 2))", ""),
        (4, "inverted", "call('HINCRBY', KEYS[1], 'x', whole(1 - 2))",
         "call('HINCRBY', KEYS[1], 'x', string.format('%.0f', 0 - (whole(1 - 2))))"),
        (5, "deleted", live, "0"),
        (5, "pretended", live, "1"),
        (5, "inverted", live,
         "call('HINCRBY', KEYS[1], 'live', string.format('%.0f', 0 - (-1)))"),
        (6, "deleted", "redis.call(ARGV[4], ARGV[5], '1')", ""),
        (7, "negated", "not found", "not (not found)"),
        (7, "deleted", "call('SADD', KEYS[2], ARGV[1])", ""),
        (7, "inverted", "call('SADD', KEYS[2], ARGV[1])", "call('SREM', KEYS[2], ARGV[1])"),
        (8, "inverted", "left <= 0", "left > 0"),
        (8, "ignored", "left <= 0", "true"),
    ]  # fmt: skip


def test_mutant_changes_only_its_piece() -> None:
    for mutant in mutants("s", SCRIPT):
        changed = mutant.applied(SCRIPT)
        assert changed != SCRIPT
        assert changed[: mutant.start] == SCRIPT[: mutant.start]
        assert changed[mutant.start + len(mutant.replacement) :] == SCRIPT[mutant.end :]


def test_mutant_is_found_in_edited_script() -> None:
    before = {mutant.anchor for mutant in mutants("s", SCRIPT)}
    after = mutants("s", f"-- one line more\n{SCRIPT}")
    assert {mutant.anchor for mutant in after} == before
    assert len(before) == len(after)


async def test_every_mutant_compiles(redis: Redis) -> None:
    found = all_mutants()
    assert len({mutant.anchor for mutant in found}) == len({one.name for one in found})
    broken = [mutant.name for mutant in found if not await _loads(redis, mutant)]
    assert broken == []


async def test_instrumented_scripts_compile(redis: Redis) -> None:
    first = 0
    for path in sorted(storage.redis.scripts.LUA_DIR.glob("*.lua")):
        text = instrumented(path.read_text(), first)
        first += len(sites(path.read_text()))
        assert text.count("reached(") == len(sites(path.read_text()))
        await redis.script_load(text)


async def _loads(redis: Redis, mutant: Mutant) -> bool:
    text = (storage.redis.scripts.LUA_DIR / f"{mutant.script}.lua").read_text()
    try:
        await redis.script_load(mutant.applied(text))
    except ResponseError:
        return False
    return True


def test_survivors_name_existing_mutants() -> None:
    known = {mutant.anchor for mutant in all_mutants()}
    assert [anchor for anchor in survivors() if anchor not in known] == []


@pytest.mark.parametrize("mix", MIXES)
def test_worlds_cover_every_mix(mix: str) -> None:
    assert sum(case.mix == mix for case in cases()) >= 6
