"""The operators' log by HTTP: pages, filters, and CSV."""

import csv
import io

import pytest

from tests.fixtures.server import TestServer
from tests.server.api import ask, assert_problem, grant

GRANTS = "/v1/accounts/{}/grants?org=acme"


@pytest.fixture
async def filled(server: TestServer) -> TestServer:
    """Five grants, of olga and of =rita; the last is refused."""
    for number in range(5):
        actor = "=rita" if number % 2 else "olga"
        await grant(
            server,
            "-1" if number == 4 else "1",
            f"k{number}",
            GRANTS.format(f"a{number}"),
            server.token(actor, scope="ops"),
            reason=f'=reason {number}, with "quotes"',
        )
    return server


async def read(server: TestServer, query: str = "", scope: str = "ops:read") -> list[str]:
    response = await ask(server, "GET", f"/v1/ops/log{query}", server.token("rita", scope=scope))
    assert response.status_code == 200, response.text
    return [row["target"] for row in response.json()["items"]]


async def test_pages_are_newest_first_and_neither_repeat_nor_skip(filled: TestServer) -> None:
    reader = filled.token("rita", scope="ops:read")
    seen: list[str] = []
    query = "?limit=2"
    while query:
        page = (await ask(filled, "GET", f"/v1/ops/log{query}", reader)).json()
        seen += [row["target"] for row in page["items"]]
        if len(seen) == 2:  # what comes meanwhile moves no page
            await grant(filled, "1", "late", GRANTS.format("late"), filled.token(scope="ops"))
        query = f"?limit=2&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert seen == [f"account:a{number}" for number in (4, 3, 2, 1, 0)]


async def test_a_row_says_everything(filled: TestServer) -> None:
    reader = filled.token("rita", scope="ops:read")
    page = (await ask(filled, "GET", "/v1/ops/log?target=account:a0", reader)).json()
    (row,) = page["items"]
    assert row.keys() == {
        "at", "actor", "via", "action", "target", "org_id", "user_id", "reason", "before",
        "after", "outcome", "code", "request_id",
    }  # fmt: skip
    assert (row["actor"], row["via"], row["action"]) == ("olga", "token", "credit")
    assert (row["org_id"], row["user_id"], row["outcome"]) == ("acme", None, "done")
    assert (row["before"]["credits"], row["after"]["credits"]) == ("0", "1")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?actor=olga", ["a4", "a2", "a0"]),
        ("?action=credit&limit=1", ["a4"]),
        ("?action=end", []),
        ("?outcome=refused", ["a4"]),
        ("?outcome=done&actor=olga", ["a2", "a0"]),
        ("?from=0&to=1", []),
        ("?from=1", ["a4", "a3", "a2", "a1", "a0"]),
    ],
)
async def test_filters(filled: TestServer, query: str, expected: list[str]) -> None:
    assert await read(filled, query) == [f"account:{name}" for name in expected]


@pytest.mark.parametrize(
    "query",
    ["?outcome=x", "?from=x", "?to=-1", "?from=99999999999999999", "?actor=", "?cursor=x",
     "?cursor=WzBd", "?limit=0", "?actor=%00"],
)  # fmt: skip
async def test_malformed_parameters_are_named(server: TestServer, query: str) -> None:
    reader = server.token("rita", scope="ops:read")
    for path in ("/v1/ops/log", "/v1/ops/log.csv"):
        if path.endswith(".csv") and query.startswith(("?cursor", "?limit")):
            continue
        detail = assert_problem(await ask(server, "GET", path + query, reader), 400, "bad_message")
        assert query[1:].partition("=")[0] in detail["detail"]


async def test_csv_has_what_the_filters_show(filled: TestServer) -> None:
    reader = filled.token("rita", scope="ops:read")
    response = await ask(filled, "GET", "/v1/ops/log.csv?actor=%3Drita", reader)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["target"] for row in rows] == ["account:a3", "account:a1"]
    assert {row["actor"] for row in rows} == {"'=rita"}
    assert rows[0]["reason"] == '\'=reason 3, with "quotes"'
    assert rows[0]["at"].endswith("Z")
    assert '"credits"' in rows[0]["before"]
