"""The auditor's part for proofs, messages, outboxes and expiry.

Bills rely on these. This part checks no figure of a bill. It checks proofs of life, limits as they
were set, messages about changed accounts, how far outboxes were flushed, and how long a key is
kept.
"""

from typing import Any

from protocol import limits
from storage import limits as storage_limits
from tests.simulation.money_client import MoneyClient, Transfer
from tests.simulation.processes import CALM_BEAT_MS
from tests.simulation.state import State, place_of
from tests.simulation.world import World

FORGETTING_MS = 30 * 60_000
"""How much longer than needed an entry may be remembered.

The entry is forgotten after its flush, when another entry comes.
"""
CLOCKS_DIFFER_MS = 250
"""Half of the longest round trip over which a process asks for the time."""


class Upkeep:
    """Checks after each action, and remembers what it saw."""

    def __init__(self, world: World, money_client: MoneyClient) -> None:
        self.world = world
        self.money_client = money_client
        self._beaten: dict[str, float] = {}
        """The times of the heartbeat that was checked last."""
        self._seen: set[str] = set()
        """All outbox entries so far."""
        self._written: set[tuple[str, str, str]] = set()
        """States of holds, and ledger entries, that were on their way to Postgres."""
        self._was_stepped = False
        """The clock of Redis was stepped, so its times cannot be compared with earlier ones."""

    def check(self, state: State) -> None:
        """Raises ``AssertionError`` for whatever does not add up."""
        self._seen.update(state.outbox)
        self._was_stepped |= bool(self.world.cluster.clock.redis_ahead_ms)
        self._check_proofs(state)
        self._check_limits(state)
        self._check_months_told(state)
        self._check_free_time(state)
        self._check_watermarks(state)
        self._check_news(state)
        self._check_written(state)
        self._check_full(state)
        self._check_watched(state)
        if not self._was_stepped:
            self._check_kept(state)
            self._check_remembered(state)

    def check_running(self, state: State) -> None:
        """Redis has each user's live sessions for kinds with a bound."""
        expected: dict[str, set[str]] = {}
        for name, session in state.live.items():
            identity = session["identity"]
            if identity["terms"].get("max_live_sessions", 0):
                place = f"{identity['tenant']}/{identity['user_id']}/{identity['kind']}"
                expected.setdefault(place, set()).add(name)
        running = state.sets["running"]
        found = {place: names - self.world.strays for place, names in running.items()}
        found = {place: names for place, names in found.items() if names}
        assert found == expected, (found, expected)

    def record(self, record: dict[str, Any]) -> None:
        """Notes a record on its way to Postgres."""
        if record["t"] == "hold":
            self._written.add((record["tenant"], record["hold_id"], record["state"]))
        elif record["t"] == "entry":
            self._written.add((record["tenant"], record["account_id"], record["entry_id"]))

    # --- Who lives ------------------------------------------------------------------------

    def _check_proofs(self, state: State) -> None:
        """Every process proves its life, and its heartbeat's times are right.

        The times are those of the last heartbeat.
        """
        world, beaten = self.world, state.clock
        if not world.is_quiet or world.losses:
            return
        for node in world.nodes:
            silent_ms = world.now - state.proofs.get(node.process.node, 0)
            assert abs(silent_ms) <= limits.NODE_SILENT_MS, (node.name, state.proofs, world.now)
        if not world.nodes or not beaten:
            assert beaten or not world.nodes, "no beat was noted"
            return
        late_ms = world.now - beaten["cluster"]
        tended_ms = world.now - world.cluster.tended_since
        assert late_ms <= CALM_BEAT_MS + limits.NODE_SILENT_MS or late_ms <= tended_ms, beaten
        if not self._was_stepped:
            apart_ms = beaten["redis"] / 1000 - beaten["cluster"]
            if any(server.line.troubled for server in world.cluster.servers):
                # A heartbeat may arrive long after it was sent, even after its sender has died. It
                # has the cluster time then, and what its sender took for Redis's time. From the
                # latter a reader knows how late it was.
                apart_ms -= max(0, beaten["redis"] / 1000 - beaten["believed"])
            assert abs(apart_ms) <= 10 * CLOCKS_DIFFER_MS, beaten
        if self._beaten and beaten["cluster"] > self._beaten["cluster"]:
            assert beaten.get("beats", 0) > self._beaten.get("beats", 0), (beaten, self._beaten)
        self._beaten = beaten

    # --- Limits ---------------------------------------------------------------------------

    def _check_limits(self, state: State) -> None:
        """A limit in Redis is the one that was set last."""
        for (kind, place), wanted in self.world.limits.items():
            counter = state.hashes[kind].get(place)
            if counter is None or wanted is None:
                continue
            minutes, overage = wanted
            found = counter.get("limit", ""), counter.get("overage", "0") == "1"
            assert found == ("" if minutes is None else str(minutes), overage), (place, counter)

    def _check_months_told(self, state: State) -> None:
        """A step's answer has its month's limits as Redis has them."""
        for identity, member, org in self.world.months_told:
            places = {"member": f"{identity.tenant}/{identity.user_id}", "org": identity.tenant}
            for (kind, place), told in zip(places.items(), (member, org), strict=True):
                counter = state.hashes[kind].get(place)
                if counter is not None and identity.terms.counts_minutes:
                    is_free = not counter.get("limit") or counter.get("overage") == "1"
                    limit = None if is_free else int(counter["limit"])
                    assert told.limit_minutes == limit, (place, told, counter)
        self.world.months_told.clear()

    def _check_free_time(self, state: State) -> None:
        """Redis keeps free time only for users who share it among sessions."""
        for name in state.hashes["free"]:
            assert name.partition("/")[2], name

    # --- Messages about accounts ------------------------------------------------------------

    def _check_news(self, state: State) -> None:
        """Each movement of an account is published once.

        The message has the movement's reason and amount.
        """
        news = self.world.cluster.news
        for transfer in self.money_client.transfers.values():
            if transfer.state != "done" or transfer.entry_id in self.money_client.told:
                continue
            self.money_client.told.add(transfer.entry_id)
            entry = transfer.hold_id or transfer.entry_id
            told = news.get((transfer.person.account, entry), [])
            if transfer.kind == "spend":
                self._check_told(
                    transfer, told, [("spend", -transfer.micros)] if transfer.micros else []
                )
            elif transfer.kind == "hold":
                self._check_told(transfer, told[:1], [("hold", 0)])
            elif transfer.kind == "pay":
                kind = "grant" if transfer.micros > 0 else "adjust"
                # Nothing is published for an account that is not in Redis.
                self._check_told(transfer, told, [(kind, transfer.micros)][: len(told)])
        for hold in state.hashes["hold"].values():
            self._check_hold_told(hold)

    def _check_hold_told(self, hold: dict[str, str]) -> None:
        account = hold["tenant"], hold["account"]
        news = self.world.cluster.news
        told = [one for one in news.get((account, hold["id"]), []) if one["reason"] != "hold"]
        posted = news.get((account, f"post:{hold['id']}"), [])
        reasons = [one["reason"] for one in (*told, *posted)]
        expected = {"voided": ["void"], "expired": ["expire"], "posted": ["post"], "open": []}
        assert reasons == expected[hold["state"]], (hold, told, posted)
        for one in (*told, *posted):
            assert one.get("operation") == (hold["operation"] or None), (hold, one)
        for one in posted:
            assert int(one["delta"]) == -int(hold["posted"]), (hold, one)

    def _check_told(
        self, transfer: Transfer, told: list[dict[str, Any]], expected: list[tuple[str, int]]
    ) -> None:
        found = [(one["reason"], int(one["delta"])) for one in told]
        assert found == expected, (transfer, told)
        for one in told:
            assert one.get("operation") == transfer.operation, (transfer, told)

    def _check_watched(self, state: State) -> None:
        """Steps are published for observers only of sessions ever observed."""
        for name, session in state.sessions.items():
            session_id = session["identity"]["session_id"]
            assert "watched" not in session or session_id in self.world.watched, name

    # --- Records --------------------------------------------------------------------------

    def _check_written(self, state: State) -> None:
        """What Redis decides goes to Postgres by the outbox.

        This is so even if a process writes it too.
        """
        for hold in state.hashes["hold"].values():
            name = hold["tenant"], hold["id"], hold["state"]
            assert name in self._written, hold
        for transfer in self.money_client.transfers.values():
            if transfer.kind == "spend" and transfer.state == "done" and transfer.micros:
                assert (*transfer.person.account, transfer.entry_id) in self._written, transfer

    def _check_full(self, state: State) -> None:
        """A full outbox takes no start, hold or spend.

        Only what runs is recorded to its end.
        """
        for partition in "01":
            waiting = sorted((one for one in state.outbox if one[0] == partition), key=place_of)
            for entry in waiting[storage_limits.OUTBOX_ENTRIES_MAX :]:
                for record in state.outbox[entry]:
                    is_begun = record["t"] == "session" or record.get("state") == "open"
                    is_spent = record.get("entry_kind") == "spend"
                    assert not is_begun, (entry, record)
                    assert not is_spent, (entry, record)

    # --- What is kept ---------------------------------------------------------------------

    def _check_watermarks(self, state: State) -> None:
        """Watermarks pass each entry that left the outbox.

        They pass them up to the oldest waiting entry. Until then processes keep what they would
        have to append again.
        """
        waiting = {entry: place_of(entry) for entry in state.outbox}
        for partition in "01":
            oldest = min(
                (at for entry, at in waiting.items() if entry[0] == partition), default=None
            )
            left = [
                place_of(entry)
                for entry in self._seen
                if entry[0] == partition
                and entry not in waiting
                and (oldest is None or place_of(entry) < oldest)
            ]
            if left:
                mark = state.watermarks.get(partition)
                assert mark is not None, (partition, left)
                assert place_of(f"{partition}/{mark}") >= max(left), (partition, mark, max(left))

    def _check_kept(self, state: State) -> None:
        """Nothing is forgotten before Postgres has it.

        A key is kept for its full time after its last use.
        """
        for entry, records in state.outbox.items():
            at = place_of(entry)[0]
            for record in records:
                if record["t"] not in ("entry", "hold") or record.get("entry_kind") == "burn":
                    continue
                name = f"{record['tenant']}/{record['account_id']}"
                kinds = ["account"]
                is_counted = record.get("state", "open") == "open"
                if record.get("operation") and is_counted and record.get("entry_kind") != "post":
                    kinds.append("operations")
                for kind in kinds:
                    ends = state.expiry_of(kind, name)
                    kept = ends is None or ends >= at + storage_limits.ACCOUNT_IDLE_MS
                    assert kept, (kind, name, ends, record)
                if record.get("entry_kind") in ("spend", "post"):
                    key = state.key_of("spends", name)
                    known = record["entry_id"] in state.remembered.get(key, {})
                    assert known, (record, state.remembered)
                    assert state.expiry[key] >= at + storage_limits.ACCOUNT_IDLE_MS, (key, record)

    def _check_remembered(self, state: State) -> None:
        """Young entries are remembered, and the number of older ones is bounded."""
        bounds = {
            "applied": storage_limits.ENTRIES_REMEMBERED_MIN,
            "spends": storage_limits.SPENDS_REMEMBERED_MIN,
        }
        for key, entries in state.remembered.items():
            kind = key.split(":")[1]
            newest = max(entries.values())
            until = newest - storage_limits.SPENDS_REMEMBERED_MS - FORGETTING_MS
            old = [entry for entry, at in entries.items() if 0 < at < until]
            # A post is added without forgetting; the next spend forgets older entries.
            assert len(entries) <= bounds[kind] + 1 or len(old) <= 1, (key, entries)
        for transfer in self.money_client.transfers.values():
            kind = {"spend": "spends", "pay": "applied"}.get(transfer.kind, "")
            is_young = self.world.now - transfer.at < storage_limits.SPENDS_REMEMBERED_MS
            place = "/".join(transfer.person.account)
            if not kind or transfer.state != "done" or not is_young:
                continue
            if place not in state.hashes["account"] or transfer.at <= self.world.forgot_at:
                continue
            taken = (transfer.person.account, transfer.entry_id) in self.world.cluster.news
            if transfer.kind == "pay" and not taken:
                continue  # it was loaded with the account, whose ledger position covers it
            key = state.key_of(kind, place)
            assert transfer.entry_id in state.remembered.get(key, {}), (transfer, state.remembered)
