"""The auditor notices scripts with one deliberate fault each.

Every mutation breaks a promise of DESIGN section 1. Worlds are run with it until the auditor
complains; with the unchanged scripts the same worlds keep every promise. Besides the mutations that
are written by hand, some of those that are made by rule (``scripts/mutate``) are tried, other ones
each day.
"""

import random
import time

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.hunt import Case, Hunter, cases, directed_cases, noticed
from tests.simulation.mutants import Mutant, all_mutants
from tests.simulation.traces import NODE, SEED, act, mishaps, pay, spend, wait
from tests.simulation.virtual_redis import Mutation

SAMPLE = 12
DAY_S = 86_400

CHECKED = """if tonumber(version or '0') ~= step.version then return answer('stale') end
-- Another step made this version: it was made on a copy that lacked the caller's last one.
if (newest[2] or '') ~= step.after then return answer('stale') end
"""
MUTATIONS = {
    "no sequence check": Mutation("commit", CHECKED, ""),
    "a minute is appended twice": Mutation(
        "commit",
        "-- Append.\n",
        "if step.records then"
        " call('XADD', KEYS[8], '*', 'r', step.records, 't', whole(step.at)) end\n",
    ),
    "nothing is settled": Mutation(
        "commit", "call('HINCRBY', KEYS[4], 'balance', whole(-step.charge))", ""
    ),
    "free time is given twice": Mutation(
        "commit", "call('HINCRBY', KEYS[7], 'used', whole(step.free_taken))", ""
    ),
    "more is granted than there is": Mutation(
        "commit", "if micros > 0 and micros > room then return 'credits' end", ""
    ),
    "a reservation is not given back": Mutation(
        "commit",
        "local held_change = holding.held - step.held",
        "local held_change = math.max(0, holding.held - step.held)",
    ),
    "minutes do not count in the month": Mutation(
        "commit", "call('HINCRBY', key, 'used:' .. month, whole(part.used))", ""
    ),
    "the month has no limit": Mutation(
        "commit", "if needed > 0 and needed > counter.room then", "if false then"
    ),
    "the last grant does not say so": Mutation(
        "commit",
        "final = chosen.final or (not waits and lacking(chosen.more, chosen.more_minutes)) or ''",
        "final = chosen.final or ''",
    ),
    "whoever leaves ends it for others": Mutation(
        "commit", "if version and call('SCARD', KEYS[3]) > 0 then", "if false then"
    ),
    "a spend takes what is held": Mutation(
        "spend",
        "if micros > 0 and balance - held < micros then",
        "if micros > 0 and balance < micros then",
    ),
    "a grant is applied twice": Mutation(
        "credit", "if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then", "if true then"
    ),
    "what is posted is not charged": Mutation(
        "post", "if not charged then call('HINCRBY', KEYS[1], 'balance', minus(ARGV[2])) end", ""
    ),
    "a voided hold stays reserved": Mutation(
        "void", "call('HINCRBY', KEYS[1], 'reserved', minus(hold[2]))", ""
    ),
    "what is put back is charged again": Mutation(
        "assert", "local charged = included(4)", "local charged = 0"
    ),
}


def sample() -> list[tuple[Mutant, Case]]:
    """A daily sample of noticed mutants, with the worlds that noticed them."""
    known, worlds = noticed(), {str(case): case for case in directed_cases() + cases()}
    candidates = [
        (mutant, worlds[known[mutant.anchor]])
        for mutant in all_mutants()
        if known.get(mutant.anchor) in worlds
    ]
    return random.Random(int(time.time()) // DAY_S).sample(candidates, SAMPLE)


@pytest.mark.usefixtures("quiet_logs")
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=list(MUTATIONS))
def test_auditor_notices_mutations(lab: Laboratory, mutation: Mutation) -> None:
    assert Hunter(lab).notices(mutation, cases())


@pytest.mark.usefixtures("quiet_logs")
def test_auditor_notices_mutants(lab: Laboratory) -> None:
    """The auditor notices the sampled mutants, except perhaps one.

    One may be missed, because a change of the code changes the worlds of all seeds.
    """
    hunter = Hunter(lab)
    missed = [mutant.name for mutant, case in sample() if not hunter.notices(mutant, [case])]
    assert len(missed) <= 1, missed


@pytest.mark.usefixtures("quiet_logs")
def test_auditor_notices_spend_charged_twice(lab: Laboratory) -> None:
    """The auditor notices a spend that is charged twice.

    The first answer has to be lost, which happens only rarely by chance.
    """
    trace = [
        pay("cat9", 5_000_000),
        spend("cat9", 250_000, "warm"),
        mishaps(NODE, "redis", ["unanswered", 10]),
        spend("cat9", 250_000),
        wait(5),
        act("again", node=NODE, entry="spend"),
        wait(60),
    ]
    assert lab.run(SEED, 0, actions=trace).failure is None
    mutation = Mutation("spend", "if done then", "if false then")
    assert isinstance(lab.run(SEED, 0, actions=trace, mutations=[mutation]).failure, AssertionError)
