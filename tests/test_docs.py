"""Compares the documentation's tables with the code, and runs its examples."""

import asyncio
import functools
import http.server
import json
import os
import re
import shutil
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from playwright.async_api import Browser, ConsoleMessage, expect

from protocol import limits, rate_card
from protocol.wire.codec import decode
from protocol.wire.errors import RETRYABLE_CODES, CloseCode, ErrorCode, may_reconnect
from protocol.wire.messages import CLIENT_MESSAGES, SERVER_MESSAGES
from server import limits as server_limits
from server.runtime.metrics import Metrics
from server.runtime.settings import PREFIX, RATES_DEFAULT, Settings
from tests.browser.fixtures import chromium
from tests.fixtures.server import API_KEY, StartServer, TestServer

__all__ = ["chromium"]

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INTEGRATING = ROOT / "docs" / "integrating.md"
OPERATING = ROOT / "docs" / "operating.md"
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [README, *(ROOT / page for page in PAGES), *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE_URL = "http://127.0.0.1:8000"
PATIENCE_S = 20


def section(document: Path, heading: str) -> str:
    """The text under a heading.

    It ends at the next heading of the same or a higher rank.
    """
    found = re.search(rf"^(#+) {re.escape(heading)}$", document.read_text(), re.MULTILINE)
    assert found, f"{document.name} has no heading {heading!r}"
    rest = document.read_text()[found.end() :]
    return re.split(rf"^#{{1,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """The rows of every table in ``text``, without heads; cells without backticks."""
    rows = []
    for body in re.findall(r"^\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        for line in body.splitlines():
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def codes(cell: str) -> list[str]:
    """The names between backticks in a cell, which may contain several."""
    return re.findall(r"[\w./{}]+", cell)


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


# --- Links ---------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_inside_the_repository_work(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        leads = target.is_relative_to(ROOT) and target.exists()
        if not leads or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_named_files_exist(document: Path) -> None:
    named = re.findall(
        r"`((?:server|storage|protocol|tests|scripts|docs)/[\w./*-]+)`", document.read_text()
    )
    assert [name for name in named if not [*ROOT.glob(name)]] == []


# --- Limits --------------------------------------------------------------------------


def test_the_table_of_limits_matches_the_code() -> None:
    rows = {row[0]: row[2] for row in table(section(OPERATING, "Hostile peers"))}
    told = {
        "opens a connection and says nothing": [server_limits.REQUEST_HEAD_MS / 1000],
        "sends a body too slowly": [server_limits.REQUEST_BODY_MS / 1000],
        "keeps a connection open after an answer": [server_limits.KEEP_ALIVE_MS / 1000],
        "sends a head that is too large": [
            server_limits.REQUEST_HEAD_BYTES_MAX / 1024,
            server_limits.REQUEST_HEADERS_MAX,
        ],
        "sends a body that is too large": [server_limits.BODY_BYTES_MAX / 1024],
        "sends requests without waiting for the answers": [server_limits.REQUESTS_PIPELINED_MAX],
        "takes all connections": [server_limits.DESCRIPTORS_RESERVED],
        "takes many connections from one address, or one /64 of IPv6": [
            server_limits.SOCKETS_PER_ADDRESS_MAX
        ],
        "takes many sockets as one user": [server_limits.SOCKETS_PER_USER_MAX],
        "does not read what it is sent": [
            server_limits.WRITE_BUFFER_SKIP_BYTES / 1024,
            server_limits.WRITE_BUFFER_CLOSE_BYTES / 2**20,
            server_limits.SLOW_PEER_ABORT_MS / 1000,
        ],
        "does not answer pings": [server_limits.PONG_TIMEOUT_MS / 1000],
        "does not authenticate": [server_limits.AUTH_TIMEOUT_MS / 1000],
        "tries tokens or keys": [
            server_limits.AUTH_FAILURES_PER_ADDRESS_PER_MINUTE,
            server_limits.SUSPECT_CHECK_MS,
        ],
        "sends many messages on a socket, or requests over HTTP as one user": [
            server_limits.REQUESTS_BURST,
            server_limits.REQUESTS_PER_SECOND,
            server_limits.REFUSALS_PER_SOCKET_MAX,
        ],
        "sends a message that is too large": [limits.MESSAGE_BYTES_MAX / 1024],
        "sends many fragments, or many pings and pongs": [
            server_limits.FRAGMENTS_PER_MESSAGE_MAX,
            server_limits.CONTROL_FRAMES_MAX,
            server_limits.CONTROL_WINDOW_MS / 1000,
        ],
        "sends what is no message, or JSON nested too deep": [limits.JSON_DEPTH_MAX],
        "sends many messages over all sockets of a user": [
            server_limits.USER_REQUESTS_BURST,
            server_limits.USER_REQUESTS_PER_SECOND,
        ],
        "starts many new sessions as one user, by whatever way": [server_limits.STARTS_BURST],
        "has many sessions": [
            server_limits.SESSIONS_PER_SOCKET_MAX,
            limits.LIVE_SESSIONS_PER_ACCOUNT_MAX,
        ],
    }
    for what, numbers in told.items():
        found = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", rows[what])]
        assert found == numbers, what


# --- Operating -----------------------------------------------------------------------


def test_every_variable_is_documented_with_its_default() -> None:
    documented = {row[0]: row[1] for row in table(section(OPERATING, "Configuration"))}
    settings = {}
    for name, field in Settings.model_fields.items():
        value = field.get_default()
        if value == RATES_DEFAULT:
            value = RATES_DEFAULT.relative_to(ROOT)
        settings[f"{PREFIX}{name.upper()}"] = "" if value in (None, (), False) else str(value)
    assert documented == settings


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documented_variables_exist(document: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", document.read_text())) <= known


def test_every_metric_is_documented() -> None:
    documented = {row[0] for row in table(section(OPERATING, "Metrics"))}
    metrics = set()
    for family in Metrics(with_process=False).registry.collect():
        metrics.add(f"{family.name}_total" if family.type == "counter" else family.name)
    assert documented == metrics


# --- Integrating ----------------------------------------------------------------------


def examples() -> list[dict[str, Any]]:
    return [json.loads(block) for block in blocks(INTEGRATING, "json")]


def test_every_message_has_an_example() -> None:
    shown = {example["type"] for example in examples() if "type" in example}
    kinds = [*CLIENT_MESSAGES, *SERVER_MESSAGES]
    assert shown == {str(kind.__struct_config__.tag) for kind in kinds}


def server_message(example: dict[str, Any]) -> dict[str, Any]:
    """The example as the server would send it."""
    (kind,) = (one for one in SERVER_MESSAGES if one.__struct_config__.tag == example.get("type"))
    made: dict[str, Any] = msgspec.to_builtins(msgspec.convert(example, kind))
    return made


def test_message_examples_are_valid() -> None:
    requests = {kind.__struct_config__.tag for kind in CLIENT_MESSAGES}
    messages = [example for example in examples() if "type" in example]
    assert len(messages) > len(requests)
    for example in messages:
        if example["type"] in requests:
            request = msgspec.to_builtins(decode(json.dumps(example)))
            assert {name: value for name, value in request.items() if value is not None} == example
        else:
            assert server_message(example) == example


def test_every_code_is_documented() -> None:
    rows = table(section(INTEGRATING, "Errors"))
    documented = [code for row in rows for code in codes(row[0])]
    assert len(set(documented)) == len(documented)
    assert {code.value for code in ErrorCode} <= set(documented)
    retryable = {row[0] for row in rows if "Retryable" in row[2]}
    assert retryable == {code.value for code in RETRYABLE_CODES}


def test_every_close_code_is_documented() -> None:
    rows = table(section(INTEGRATING, "Close codes"))
    documented = {int(row[0]): row[2].startswith("yes") for row in rows}
    assert documented == {int(code): may_reconnect(code) for code in CloseCode}


def test_every_key_of_a_kind_is_documented_with_its_default() -> None:
    rows = table(section(INTEGRATING, "The rate card"))
    assert [row[0] for row in rows if row[0] not in rate_card._KIND_KEYS] == []
    assert {row[0] for row in rows} == set(rate_card._KIND_KEYS)
    defaults = {row[0]: row[1] for row in rows if not row[1].startswith("none")}
    written = "".join(f"{key} = {value}\n" for key, value in defaults.items())
    least = '[kinds.one]\ncredits_per_minute = "1"\n'
    assert rate_card.parse_rate_card(tomllib.loads(least + written)) == rate_card.parse_rate_card(
        tomllib.loads(least)
    )


@pytest.fixture
async def openapi(server: TestServer) -> dict[str, Any]:
    """The OpenAPI document of the running server."""
    async with httpx.AsyncClient(base_url=server.url) as client:
        found: dict[str, Any] = (await client.get("/openapi.json")).raise_for_status().json()
        return found


async def test_every_call_is_documented(openapi: dict[str, Any]) -> None:
    documented = {}
    for row in table(section(INTEGRATING, "HTTP")):
        method, path = row[0].split(" ")
        roles = set(re.findall(r"[a-z]+(?::[a-z]+)?", row[1]))
        if "r" in roles:
            roles = roles - {"r"} | {"ops:read", "ops"}
        documented[method, path] = {role.replace(":", "_") for role in roles}
    described = {
        (method.upper(), path): {role for one in operation["security"] for role in one}
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
        if path.startswith(("/v1/", "/api/"))
    }
    assert documented == described


async def test_every_code_of_a_call_is_documented(openapi: dict[str, Any]) -> None:
    documented = {code for row in table(section(INTEGRATING, "Errors")) for code in codes(row[0])}
    described = {
        code
        for operations in openapi["paths"].values()
        for operation in operations.values()
        for status, response in operation["responses"].items()
        if int(status) >= 400
        # A sentence before the codes explains the status, and may name `detail`.
        for code in re.findall(r"`([a-z_]+)`", response["description"].rpartition(". ")[2])
    }
    assert described
    assert described <= documented


async def test_documented_answers_have_the_real_fields(
    openapi: dict[str, Any],
) -> None:
    schemas = openapi["components"]["schemas"].values()
    for example in examples():
        if "type" in example:
            continue
        assert any(
            example.keys() <= schema["properties"].keys()
            and set(schema.get("required", ())) <= example.keys()
            for schema in schemas
        ), example


# --- Running the examples ---------------------------------------------------------------


async def test_the_browser_example_of_the_readme_runs(
    chromium: Browser, server: TestServer
) -> None:
    (example,) = blocks(README, "js")
    assert len(example.splitlines()) <= 10
    page = await chromium.new_page()
    heard: asyncio.Queue[ConsoleMessage] = asyncio.Queue()
    page.on("console", heard.put_nowait)
    await page.goto(server.url)
    async with asyncio.timeout(PATIENCE_S):
        await page.evaluate(f"async () => {{ {example} globalThis.session = session; }}")
        assert (await heard.get()).type == "warning"  # the credits run short
        elapsed_ms, credit = [await value.json_value() for value in (await heard.get()).args]
        assert (elapsed_ms > 0, credit) == (True, "2.5")
        await page.evaluate("() => session.stop()")
        said: Any = {}
        while not isinstance(said, dict) or "session_id" not in said:
            said = await (await heard.get()).args[0].json_value()
    assert (said["session_id"], said["user_id"], said["credits"]) == ("chat-17", "visitor-ann", "0")
    await page.close()


@pytest.fixture
def web_site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A site of another origin: its directory, and its URL."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Logs nothing."""


async def test_the_page_in_integrating_runs_on_another_origin(
    chromium: Browser, start_server: StartServer, web_site: tuple[Path, str]
) -> None:
    directory, origin = web_site
    server = await start_server(origins=(origin,))
    (example,) = blocks(INTEGRATING, "html")
    (directory / "page.html").write_text(example.replace(EXAMPLE_URL, server.url))
    page = await chromium.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.goto(f"{origin}/page.html")
    await expect(page.locator("#credits")).to_have_text("2.50")
    await page.locator("#stop").click()
    await expect(page.locator("#credits")).to_have_text("0")
    assert faults == []
    await page.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_the_backend_example_of_the_readme_runs(server: TestServer) -> None:
    client = await server.login("visitor-ann")
    await client.ask("start", kind="chat", session_id="chat-17")
    example = next(block for block in blocks(README, "sh") if "curl" in block)
    lines = example.splitlines()
    assert len(lines) == 5
    commands = [line.replace(EXAMPLE_URL, server.url) for line in lines if line.startswith("curl")]
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-ec", "; echo; ".join(line.replace("curl", "curl -sS", 1) for line in commands)),
        env={**os.environ, "KEY": API_KEY, "TOKEN": server.token("visitor-ann"), "no_proxy": "*"},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        answered, _ = await shell.communicate()
    grant, *sessions = [json.loads(line) for line in answered.splitlines()]
    assert (grant["account_id"], grant["credits"]) == ("visitor-ann", "10")
    assert [one["state"] for one in sessions] == ["active", "active"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_the_stream_of_integrating_runs(server: TestServer) -> None:
    """Opens the stream by the first command, and asks by the second."""
    text = section(INTEGRATING, "Where no WebSocket gets through")
    opening, asking, _ = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shown = {"TOKEN": server.token(), "no_proxy": "*"}

    async def curl(command: str, **variables: str) -> asyncio.subprocess.Process:
        command = command.replace(EXAMPLE_URL, server.url).replace("curl", "exec curl -sS", 1)
        return await asyncio.create_subprocess_exec(
            *("sh", "-ec", command),
            env={**os.environ, **shown, **variables},
            stdout=asyncio.subprocess.PIPE,
        )

    stream = await curl(opening)
    assert stream.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        opened = (await stream.stdout.readuntil(b"\n\n")).decode()
        assert opened.startswith("event: open\n")
        stream_id = json.loads(opened.partition("data: ")[2])["stream_id"]
        answered, _ = await (await curl(asking, STREAM_ID=stream_id)).communicate()
        assert answered == b""
        ids = set[int]()
        while ids != {1, 2}:
            event = (await stream.stdout.readuntil(b"\n\n")).decode()
            if event.startswith("data: "):
                message = json.loads(event.removeprefix("data: "))
                ids |= {message["id"]} if "id" in message else set()
        stream.terminate()
        await stream.communicate()
