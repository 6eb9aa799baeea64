"""The auditor: checks from outside whether the promises hold.

The auditor is written from DESIGN section 1 and not from the code. It reads the raw data of Redis,
the records on their way to Postgres, and the messages that clients received (``evidence``). It
computes every figure again in its own, slow way, and raises ``AssertionError`` for what does not
add up. Of the world it knows the payments and the requests.

After Redis has lost something, the data of Redis is no evidence until it is put back. Then only
what clients saw and what is in Postgres counts (``verdict``).
"""

import itertools
import json
from collections import Counter, defaultdict
from typing import Any

from redis.exceptions import RedisError

from protocol import limits
from protocol.metering.steps import Step
from protocol.wire.errors import ProtocolError
from storage.postgres.records import UnavailableError
from storage.redis.live import LiveError
from tests.simulation import agreement, grants
from tests.simulation.clients import NEVER
from tests.simulation.money_client import MoneyClient
from tests.simulation.operations import Operations
from tests.simulation.processes import CALM_BEAT_MS, ServerHost
from tests.simulation.state import (
    MINUTE_MS,
    State,
    cost_micros,
    counted_ms,
    is_replay,
    look,
    minutes_counters,
    month,
)
from tests.simulation.upkeep import Upkeep
from tests.simulation.world import POISON, SWEPT_MS, World

EXPECTED = (ProtocolError, LiveError, UnavailableError, RedisError, OSError)
CLOCK_ERROR_MS = 250
"""Largest error of a process's cluster time: half the longest round trip of asking for it.

The bound also holds for a process that starts while every answer takes seconds.
"""
BLIND_CLOCK_ERROR_MS = limits.NODE_SILENT_MS
"""The same, if the process starts then and the clock of Redis is stepped meanwhile.

The newest proof of life may be this old (docs/reliability.md). The error is corrected over minutes.
"""
RECONCILED_MS = 2 * CALM_BEAT_MS
"""By then a process has reconciled its set of sessions in Redis with those that it serves."""
UNKNOWN_MAX = 8
"""Operations with unknown outcome, at most, for which the auditor tries all sums."""


class Auditor:
    """Audits a world after every action, and remembers what it saw."""

    def __init__(self, world: World, money_client: MoneyClient) -> None:
        self.world = world
        self.money_client = money_client
        self.audits = 0
        self.records = 0
        """Number of records that flushers were given."""
        self.entries: set[str] = set()
        """Outbox entries that were audited."""
        self.minutes: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        """Records of minutes, by session."""
        self.ended: dict[str, dict[str, Any]] = {}
        """Records of ends, by session."""
        self.started: set[str] = set()
        self.closed: dict[str, dict[str, Any]] = {}
        """Sessions that have ended, with their last state."""
        self.used: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Counted minutes by the counter and month."""
        self.operations = Operations(world, money_client)
        self.upkeep = Upkeep(world, money_client)
        self._ahead_ms = 0
        """The most that the clock of any process was ahead of true time."""
        self._redis_latest = 0
        """The latest time of Redis. Keys expire by it, even after the clock is stepped back."""
        self._totals: dict[tuple[str, str], int] = {}
        """Minutes that were used or held at the last audit, by counter and month."""
        world.cluster.flushed = self._flushed

    @property
    def is_blind(self) -> bool:
        """Whether Redis has lost something, so that its data is no evidence."""
        return bool(self.world.losses)

    @property
    def _is_tended(self) -> bool:
        """Whether whatever is due to end must be recorded by now.

        A process lives, Redis answers, and peers had time to sweep the dead.
        """
        world, cluster = self.world, self.world.cluster
        since = max(cluster.tended_since, *world.deaths.values(), 0)
        is_there = bool(world.nodes) and not cluster.redis_is_away
        return is_there and world.now >= since + SWEPT_MS

    @property
    def _redis_now(self) -> int:
        """The time of Redis, by which its keys expire."""
        return self.world.now + self.world.cluster.clock.redis_ahead_ms

    def _is_put_back(self, state: State) -> bool:
        """Whether everything must be back in its place after a loss."""
        since = max(
            *self.world.losses, self.world.cluster.tended_since, *self.world.deaths.values()
        )
        waits = state.recovering or not self.world.is_quiet
        return not waits and self.world.now >= since + agreement.SETTLED_MS

    def zone(self, identity: dict[str, Any]) -> str:
        """The time zone by which a session's months begin."""
        person = self.world.people.get(identity["user_id"])
        return person.zone if person is not None else "UTC"

    # --- Records -----------------------------------------------------------------------

    def _flushed(self, partition: int, entry_id: str, fields: Any) -> None:
        records = json.loads(fields[1])
        for record in records:
            self.operations.record(record)
            self.upkeep.record(record)
            self.records += record["t"] != POISON
        if not is_replay(fields):
            self._record(f"{partition}/{entry_id}", records)

    def _record(self, entry: str, records: list[dict[str, Any]]) -> None:
        if entry in self.entries:
            return
        self.entries.add(entry)
        for record in records:
            if record["t"] in ("minute", "ended", "session"):
                self._session_record(f"{record['tenant']}/{record['session_id']}", record)

    def _session_record(self, name: str, record: dict[str, Any]) -> None:
        match record["t"]:
            case "minute":
                self.minutes[name].append(record)
                if record["counts"]:
                    for counter in minutes_counters(record):
                        self.used[counter][record["month"]] += 1
            case "ended":
                assert name not in self.ended or self.is_blind, f"{name} ended twice"
                self.ended[name] = record
            case "session":
                assert name not in self.started or self.is_blind, f"{name} started twice"
                self.started.add(name)

    # --- A look ------------------------------------------------------------------------

    def audit(self) -> State:
        """Audits the world, and raises ``AssertionError`` for whatever does not add up."""
        world = self.world
        world.check_answers()
        assert not world.cluster.script_errors, world.cluster.script_errors
        # A request that changes nothing must not make processes read an account anew.
        assert not world.cluster.idle_news, world.cluster.idle_news
        for host in world.cluster.hosts:
            # The product retries a failure that names an unavailable service; any other is a bug.
            bugs = [error for error in host.failures if not isinstance(error, EXPECTED)]
            assert not bugs, bugs
        for node in world.nodes:
            # Whatever happens to wall clocks, cluster time is the same everywhere.
            # A process knows cluster time only from what the others publish in Redis. It cannot
            # tell a heartbeat that is late from a clock of Redis that was stepped.
            is_slow = world.cluster.began_slowly or node.began_late
            is_blind = is_slow and world.cluster.clock.redis_ahead_ms
            error_ms = BLIND_CLOCK_ERROR_MS if is_blind else CLOCK_ERROR_MS
            off_ms = node.clock.now() - world.now
            assert abs(off_ms) <= error_ms, (node.name, off_ms)
            self._ahead_ms = max(self._ahead_ms, off_ms)
        state = look(world.cluster.redis)
        self._redis_latest = max(self._redis_latest, self._redis_now)
        for entry, records in state.outbox.items():
            # A process that does not know of a flush appends its records again. Such a record says
            # nothing new, because Postgres keeps the record that it has. After a loss the record
            # may say something new, and only Postgres counts.
            for record in records:
                self.operations.record(record)
                self.upkeep.record(record)
            if entry not in state.replayed:
                self._record(entry, records)
        self.audits += 1
        if self.is_blind:
            self.money_client.limited.clear()
            world.accepted.clear()
            world.deals.clear()
            if self._is_put_back(state):
                agreement.check(state, self._redis_now, self._redis_latest)
                rows = world.cluster.postgres.fetch("SELECT * FROM credit_holds")
                recorded = {(row["tenant"], row["hold_id"]): row["amount_micros"] for row in rows}
                agreement.check_counters(state, recorded)
                agreement.check_projections(state, world)
                self._check_sets(state)
            return state
        agreement.check(state, self._redis_now, self._redis_latest)
        if self.world.is_quiet and not self.world.was_away:
            agreement.check_projections(state, world)
        self.operations.check(state)
        self.upkeep.check(state)
        for name, session in state.sessions.items():
            if name not in self.closed:
                self._check_session(session)
        for name, account in state.hashes["account"].items():
            self._check_account(state, name, account)
        self._check_months(state)
        self._check_free_time(state)
        self._check_holds(state)
        self._check_sets(state)
        for step, figures in world.accepted:
            self._check_step(step, figures)
        world.accepted.clear()
        for deal in world.deals:
            grants.check(deal)
        world.deals.clear()
        return state

    def close(self, state: State) -> None:
        """Remembers the sessions that have ended. Call it after everything was audited."""
        for name, session in state.sessions.items():
            if session["standing"]["phase"] == "ended":
                self.closed.setdefault(name, session)

    # --- One session ----------------------------------------------------------------

    def _check_session(self, session: dict[str, Any]) -> None:
        standing, grant = session["standing"], session["grant"]
        terms = session["identity"]["terms"]
        name = session["identity"]["session_id"], standing
        assert int(session["version"]) == standing["version"], name
        settled_ms, free_ms = standing["settled_ms"], standing["free_ms"]
        # By the clock of the process that is farthest ahead.
        assert 0 <= settled_ms <= counted_ms(session, self.world.now + self._ahead_ms), name
        # The settled time explains every charge.
        assert standing["charged_micros"] == cost_micros(terms, settled_ms, free_ms), name
        kept = standing["minutes_kept"]
        if standing["phase"] == "ended":
            assert settled_ms == standing["elapsed_ms"], name
            assert kept == -(-settled_ms // MINUTE_MS), name
        else:
            assert kept == settled_ms // MINUTE_MS, name
        boundary_ms = min(settled_ms, kept * MINUTE_MS)
        assert standing["minute_charged_micros"] == cost_micros(terms, boundary_ms, free_ms), name
        if standing["phase"] in ("paused", "suspended", "ended"):
            assert grant["held_micros"] == 0, (name, grant)
            assert not grant["held_minutes"], (name, grant)
        assert grant["held_micros"] >= 0, (name, grant)
        if terms["session_cap_ms"]:
            # A local timer stops the session there. Redis learns of the stop once a process can
            # record it, which fails while every answer comes after its deadline.
            is_recorded = self._is_tended and self.world.is_smooth
            now = self.world.now if is_recorded else standing["at"]
            assert counted_ms(session, now) <= terms["session_cap_ms"], name

    # --- Accounts ---------------------------------------------------------------------

    def _check_account(self, state: State, name: str, account: dict[str, str]) -> None:
        tenant, _, account_id = name.partition("/")
        sessions = [
            session
            for session in ({**self.closed, **state.sessions}).values()
            if (session["identity"]["tenant"], session["identity"]["account_id"])
            == (tenant, account_id)
        ]
        live = [session for session in sessions if session["standing"]["phase"] != "ended"]
        active = [session for session in live if session["standing"]["phase"] == "active"]
        holds = [
            hold
            for hold in state.holds
            if (hold["tenant"], hold["account"]) == (tenant, account_id)
        ]
        figure = {
            part: int(account.get(part, 0))
            for part in ("balance", "held", "reserved", "charged_live", "burn", "live", "holds")
        }
        where = (name, figure, self.world.now)
        burnt = sum(session["standing"]["charged_micros"] for session in sessions)
        self._check_balance((tenant, account_id), figure["balance"], burnt, where)
        reserved = sum(int(hold["amount"]) for hold in holds)
        assert figure["reserved"] == reserved, (where, holds)
        assert figure["holds"] == len(holds), (where, holds)
        held = sum(session["grant"]["held_micros"] for session in live)
        assert figure["held"] == held + reserved, (where, held)
        charged = sum(session["standing"]["charged_micros"] for session in live)
        assert figure["charged_live"] == charged, (where, charged)
        burn = sum(
            session["identity"]["terms"]["price_micros"] * session["identity"]["terms"]["speed"]
            for session in active
        )
        assert figure["burn"] == burn, (where, burn)
        assert figure["live"] == len(live) + len(holds), (where, sessions)
        if not self._may_owe(tenant, account_id, sessions):
            # No session may use what was not there when it was granted.
            assert 0 <= figure["held"] <= figure["balance"], where
        self._check_lines(account, live, where)

    def _check_balance(
        self, account: tuple[str, str], balance: int, burnt: int, where: Any
    ) -> None:
        sure, perhaps = self.money_client.moved(account)
        missing = balance + burnt - sure
        sums = {0}
        for micros in perhaps[:UNKNOWN_MAX]:
            sums |= {total + micros for total in sums}
        assert missing in sums or len(perhaps) > UNKNOWN_MAX, (where, burnt, sure, perhaps)

    def _may_owe(self, tenant: str, account_id: str, sessions: list[dict[str, Any]]) -> bool:
        """Whether an account may owe, after a withdrawal or Redis's absence.

        Held credits were taken out; or Redis was away, and no process could know all used time.
        """
        if (tenant, account_id) in self.world.taken:
            return True
        is_uncovered = any(session["standing"]["uncovered_ms"] for session in sessions)
        return is_uncovered and self._was_parted((tenant, account_id))

    def _was_parted(self, account: tuple[str, str]) -> bool:
        """Whether no living process knows everything that an account paid for.

        More than one process has served the account, one that served it has died, or operations
        were charged to it, which Redis alone decides.
        """
        world = self.world
        served = {
            client.node.process.node
            for client in world.clients
            for session_id in client.joins
            if session_id in world.session_logs
            and world.session_logs[session_id].person.account == account
        }
        charges = {"spend", "hold", "post"}
        is_charged = any(transfer.kind in charges for transfer in self.money_client.of(account))
        return len(served) > 1 or bool(served & set(world.deaths)) or is_charged

    def _check_lines(self, account: dict[str, str], live: list[dict[str, Any]], where: Any) -> None:
        lines = {name[2:]: json.loads(line) for name, line in account.items() if name[:2] == "s:"}
        # A session whose client counts its minutes has no burn line before a process meters it.
        live = [
            session
            for session in live
            if not session.get("tracked") or session["identity"]["session_id"] in lines
        ]
        assert set(lines) == {session["identity"]["session_id"] for session in live}, (
            where,
            lines,
            live,
        )
        for session in live:
            standing, terms = session["standing"], session["identity"]["terms"]
            elapsed_ms, at, free_ms, price, first_ms, next_ms, speed, running = lines[
                session["identity"]["session_id"]
            ]
            assert (price, first_ms, next_ms, speed) == (
                terms["price_micros"],
                terms["first_increment_ms"],
                terms["next_increment_ms"],
                terms["speed"],
            ), where
            assert running == (standing["phase"] == "active"), (where, session)
            assert free_ms == standing["free_ms"], (where, session)
            if running:
                elapsed_ms += (standing["at"] - at) * speed
            # A reported minute costs nothing, so it moves no burn line.
            is_moved = running or not session.get("tracked")
            assert elapsed_ms == standing["elapsed_ms"] or not is_moved, (where, session, lines)

    def _check_holds(self, state: State) -> None:
        """A posted or voided hold is closed; holds end at their expiry."""
        for transfer in self.money_client.transfers.values():
            if transfer.kind in ("post", "void") and transfer.state == "done":
                hold = state.hashes["hold"].get(f"{transfer.person.tenant}/{transfer.hold_id}")
                assert hold is None or hold["state"] != "open", (transfer, hold)
        if self.world.is_quiet:
            for hold in state.holds:
                # Expiry takes a living process, and answers of Redis that come in time.
                cluster = self.world.cluster
                since = max(int(hold["expires_at"]), cluster.tended_since, cluster.answered_since)
                assert self.world.now < since + 2 * MINUTE_MS, hold

    # --- Months and free time ---------------------------------------------------------

    def _check_months(self, state: State) -> None:
        self._look_for_late_minutes()
        used = {name: Counter(months) for name, months in self.used.items()}
        held: defaultdict[str, Counter[str]] = defaultdict(Counter)
        active: Counter[str] = Counter()
        live: Counter[str] = Counter()
        for session in state.live.values():
            identity, standing = session["identity"], session["standing"]
            if not identity["terms"]["counts_minutes"]:
                continue
            for name in minutes_counters(identity):
                live[name] += 1
                active[name] += standing["phase"] == "active"
                held[name].update(session["grant"]["held_minutes"])
                if standing["settled_ms"] > standing["minutes_kept"] * MINUTE_MS:
                    began_in = month(standing["minute_at"], self.zone(identity))
                    used.setdefault(name, Counter())[began_in] += 1
        for (tenant, user_id, first_day), minutes in self.money_client.minutes.items():
            for name in (f"member:{tenant}/{user_id}", f"org:{tenant}"):
                used.setdefault(name, Counter())[first_day] += minutes
        for kind in ("member", "org"):
            for place, counter in state.hashes[kind].items():
                name = f"{kind}:{place}"
                where = (name, counter, self.world.now)
                assert int(counter.get("active", 0)) == active[name], (where, active)
                assert int(counter.get("live", 0)) == live[name], (where, live)
                for part, expected in (("used", used.get(name, Counter())), ("held", held[name])):
                    if part == "used" and self._is_unknown(place):
                        continue
                    there = {
                        key.partition(":")[2]: int(value)
                        for key, value in counter.items()
                        if key.startswith(f"{part}:") and int(value)
                    }
                    found = {key: value for key, value in expected.items() if value}
                    assert there == found, (where, part, expected)
                self._check_month_limit(name, counter)

    def _is_unknown(self, place: str) -> bool:
        unknown = self.money_client.minutes_unknown | self.money_client.minutes_late
        return any(place.startswith(tenant) for tenant in unknown)

    def _look_for_late_minutes(self) -> None:
        """Drops tenants whose corrections Postgres marks as applied in Redis."""
        if self.money_client.minutes_late:
            fetch = self.world.cluster.postgres.fetch
            rows = fetch("SELECT DISTINCT tenant FROM minute_adjustments WHERE NOT is_applied")
            self.money_client.minutes_late &= {row["tenant"] for row in rows}

    def _check_month_limit(self, name: str, counter: dict[str, str]) -> None:
        """Nothing is granted beyond a limit, even one lowered during use."""
        tenant, _, user_id = name.partition(":")[2].partition("/")
        for key, value in counter.items():
            part, _, first_day = key.partition(":")
            if part != "used":
                continue
            total = int(value) + int(counter.get(f"held:{first_day}", 0))
            corrected = sum(
                minutes
                for (of, user, month_), minutes in self.money_client.minutes.items()
                if (of, month_) == (tenant, first_day) and user_id in ("", user)
            )
            before = self._totals.get((name, first_day), 0)
            self._totals[name, first_day] = total - corrected
            is_free = not counter.get("limit") or counter.get("overage") == "1"
            if is_free or self.world.was_away or self._is_unknown(tenant):
                continue
            has_grown = total - corrected > before or name not in self.world.lowered
            assert total <= int(counter["limit"]) or not has_grown, (name, counter, before)

    def _check_free_time(self, state: State) -> None:
        taken: Counter[str] = Counter()
        most: dict[str, int] = {}
        for session in ({**self.closed, **state.sessions}).values():
            identity, standing = session["identity"], session["standing"]
            free_ms = identity["terms"]["free_ms"]
            if identity["free_key"]:
                name = f"{identity['tenant']}/{identity['free_key']}"
                taken[name] += standing["free_ms"]
                most[name] = free_ms
                assert standing["free_ms"] <= free_ms, session
            elif standing["phase"] != "ended":
                assert standing["free_ms"] == free_ms, session
        for name, allowance in state.hashes["free"].items():
            assert int(allowance["used"]) == taken[name], (name, allowance, taken)
            assert taken[name] <= most.get(name, 0), (name, allowance)

    # --- Who is where -------------------------------------------------------------------

    def _check_sets(self, state: State) -> None:
        self.upkeep.check_running(state)
        live = set(itertools.chain(*state.sets["live"].values()))
        assert live == set(state.live), (live, set(state.live))
        graces = {
            name: session["standing"]["grace_until"]
            for name, session in state.live.items()
            if session["standing"]["grace_until"] is not None
        }
        assert state.graces == graces, (state.graces, graces)
        for name, processes in state.sets["sockets"].items():
            assert name in state.live or not processes, (name, processes)
        if not self.world.is_quiet:
            return
        local_nodes: defaultdict[str, set[str]] = defaultdict(set)
        for client in self.world.clients:
            if client.node.is_alive:
                for local in client.local_sessions.values():
                    local_nodes[local.key].add(client.node.process.node)
        for key, name in self.world.phones.sessions(self.world.nodes):
            local_nodes[key].add(name)
        dead = set(self.world.deaths)
        noted_late = {
            node.process.node: self._joined_in_vain(node, late=True) for node in self.world.nodes
        }
        removed_late = {node.process.node: self._left_late(node) for node in self.world.nodes}
        for name, session in state.live.items():
            processes = state.sets["sockets"].get(name, set())
            misnoted = {node for node, names in noted_late.items() if name in names}
            removed = {node for node, names in removed_late.items() if name in names} - processes
            there = processes - dead - (misnoted - local_nodes[name])
            assert there == local_nodes[name] - removed, (
                name,
                processes,
                dict(local_nodes),
                session,
            )
            if not processes:
                assert session["standing"]["grace_until"] is not None, session
        by_node: defaultdict[str, set[str]] = defaultdict(set)
        for key, names in state.sets["node"].items():
            by_node[key.rpartition(":")[2]] |= names
        for node in self.world.nodes:
            name = node.process.node
            expected = {session for session, processes in local_nodes.items() if name in processes}
            # Redis may carry out a request long after the process gave up on it. The set of the
            # process may then name the session, until the process reconciles the set.
            over = self._joined_in_vain(node) - set(state.live)
            over |= noted_late[name] - expected
            lacking = removed_late[name] - by_node[name]
            assert by_node[name] - over == expected - lacking, (name, by_node, expected)

    def _joined_in_vain(self, node: ServerHost, *, late: bool = False) -> set[str]:
        """Sessions that a process failed to join since its last reconciliation.

        ``late``: only those of which Redis has received a message later.
        """
        since = self.world.now - RECONCILED_MS
        ms_ago = (node.loop.time() - node.line.carried_late_s) * 1000
        return {
            f"{session_log.person.tenant}/{session_log.session_id}"
            for one, session_log, at in self.world.in_vain
            if one is node and at > since and not (late and at > self.world.now - ms_ago)
        }

    def _left_late(self, node: ServerHost) -> set[str]:
        """Sessions whose process Redis may have removed since its last reconciliation.

        A client has left the session. Redis has received a message of the process later than the
        process waited for, perhaps after another client had joined.
        """
        if node.line.carried_late_s < node.loop.time() - RECONCILED_MS / 1000:
            return set()
        return {
            f"{session_log.person.tenant}/{session_log.session_id}"
            for session_log in self.world.session_logs.values()
            if any(found_at != NEVER for _, _, found_at in session_log.served)
        }

    # --- Steps ---------------------------------------------------------------------------

    def _check_step(self, step: Step, figures: dict[str, int]) -> None:
        """No time settles without an earlier grant; no grant exceeds the room.

        That holds whatever the account owed already.
        """
        before, after = step.before, step.standing
        uncovered_ms = after.uncovered_ms - before.standing.uncovered_ms
        ground_ms = max(before.standing.settled_ms, before.grant.granted_ms) + uncovered_ms
        assert after.settled_ms <= ground_ms, (step, figures)
        assert uncovered_ms == 0 or self.world.was_away, (step, figures)
        if figures["alone"] and figures["held"] > figures["balance"] and figures["held_by_it"]:
            used = figures["held_by_it"] + step.charge_micros
            assert used <= before.grant.held_micros, (step, figures)
