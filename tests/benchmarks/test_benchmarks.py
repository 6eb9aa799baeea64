"""Runs the measurements and checks their reports' form, not their figures."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.benchmarks import clock, memory, spends, ticks
from tests.browser.fixtures import CHROMIUM


def bench(*arguments: str) -> list[str]:
    """The lines that a measurement prints."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_every_contestant_pushes() -> None:
    _, _, *rows = bench("ticks", "--sockets", "3", "--seconds", "0.02", "--rounds", "2")
    assert [row[:22].strip() for row in rows] == [kind.name for kind in ticks.CONTESTANTS]
    for row in rows:
        sockets, rate, _, cost, _, skipped = row[22:].replace(",", "").split()
        assert sockets == "3"
        assert int(skipped) >= 0  # on a busy machine slow sockets skip ticks
        assert float(rate) > 0
        assert float(cost) > 0


def test_a_sweep_goes_over_all_numbers() -> None:
    _, _, *rows = bench("ticks", "--sockets", "4,2", "--seconds", "0.02", "--rounds", "2")
    assert [row[22:].split()[0] for row in rows] == ["2", "2", "4", "4"]


def test_memory_of_each_contestant() -> None:
    _, *rows, session = bench("memory", "--sockets", "50", "--idle", "0")
    assert [row[:24].strip() for row in rows] == list(memory.CONTESTANTS)
    assert all(row.endswith(" bytes/socket") for row in rows)
    assert session.startswith(memory.SESSIONS)
    assert session.endswith(" bytes/session")


def test_spends_beside_what_they_consist_of() -> None:
    _, _, *rows = bench("spends", "--concurrency", "1,2", "--seconds", "0.02", "--rounds", "2")
    names = ["Redis EVALSHA, bare", "Postgres insert, bare", "both, one after the other"]
    names += ["spend, below HTTP", "GET /healthz", "spend, through HTTP"]
    assert [row[:26].strip() for row in rows if row[:1] != " "] == [
        *names,
        *names,
        "audit: everything adds up",
    ]
    for row in rows[:6]:
        at_once, p50, p99, rate, *_ = row[26:].replace(",", "").split()
        assert at_once == "1"
        assert 0 < float(p50) <= float(p99)
        assert float(rate) > 0
    shares = [float(row.split()[-1].rstrip("%")) for row in rows if row.endswith("%")]
    assert [len(shares), round(sum(shares[:4]) / 100)] == [2 * (len(spends.PARTS) + 1), 1]


def test_clients_come_back_after_a_kill() -> None:
    _, opened, returned, _, *rows = bench(
        "reconnect", "--clients", "8", "--processes", "2", "--seconds", "0"
    )
    assert opened.startswith("8 sessions on 2 processes")
    assert returned.startswith("4 lost their process: 4 sessions went on, 0 ended")
    lost, shown, ticked = (float(row.split()[-1]) for row in rows[:3])
    assert 0 <= lost <= shown <= ticked  # rounded: lost may be 0.00
    assert ticked > 0
    assert rows[-2:] == ["gaps in sessions of the other processes: 0", "audit: everything adds up"]
    # Each session that came back is in one of the three rows.
    assert sum(int(row.split()[-1]) for row in rows[5:8]) == 4


def test_requests_without_a_token() -> None:
    _, _, *rows = bench("anonymous", "--times", "2")
    assert {"/healthz", "/readyz", "/metrics", "/openapi.json", "/"} <= {
        row[:28].strip() for row in rows
    }
    for row in rows:
        median, most = (float(figure) for figure in row[28:].split())
        assert 0 <= median <= most


@pytest.mark.full
@pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="there is no Chromium")
def test_a_clock_beside_the_servers() -> None:
    (line,) = bench("clock", "--seconds", "2", "--json")
    result = json.loads(line)
    assert [result["seconds"], len(result["rounds"])] == [2, 2]
    for row in result["rounds"].values():
        assert row["frames"] > 0
        assert 0 <= row["p50"] <= row["p99"] <= row["most"]
        assert (row["back"], row["beyond"]) == (0, 0)
    *_, verdict = clock.table(result)
    assert verdict.startswith("at most 1000 ms off, never back, never beyond: ")


def test_stops_beside_bare_timers() -> None:
    arguments = ("--ticking", "4", "--stopping", "3", "--seconds", "0.5")
    _, said, _, _, *rows, histogram, owing, audit = bench("stops", *arguments)
    assert said == "3 sessions stop over 0.5 s, while 4 tick"
    for row in rows:
        figures = [float(figure) for figure in row[36:].split()]
        assert len(figures) == 6
        for p50, p99, most in (figures[:3], figures[3:]):
            assert p50 <= p99 <= most
    assert float(rows[0][36:].split()[0]) >= 0
    assert histogram.startswith("by /metrics: ")
    assert " of 3 within 10 ms" in histogram
    assert owing == "accounts that owe: 0, and 0"
    assert audit == "audit: everything adds up; everything adds up"
