"""Fixtures of every test: real engines, own database, real server."""

from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.engines",
    "tests.fixtures.database",
    "tests.fixtures.environment",
    "tests.fixtures.server",
    "tests.simulation.fixtures",
]

# No test may depend on the machine's speed, so Hypothesis has no deadline either.
settings.register_profile("taximeter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taximeter")

# With rich installed, structlog draws every traceback with all variables of its frames: a test that
# provokes errors would wait for the drawing.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)

LONGEST_FIRST = (
    "fuzz/test_fuzz.py",
    "faults/test_torture.py",
    "simulation/test_mutations.py",
    "benchmarks/test_benchmarks.py",
    "faults/test_redis_cluster.py",
    "browser/test_real_tabs.py",
    "simulation/test_unproven.py",
    "simulation/test_seeds.py",
    "faults/test_restart.py",
    "server/test_openapi_true.py",
)
"""Files of few tests that take long: one that begins last would keep the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take long first."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
