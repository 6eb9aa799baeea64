"""Tests the words, languages and looks of the elements, and their manifest."""

import json
import re
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser.element_fixtures import (
    CLOCK,
    EVERYTHING,
    ElementsPage,
    elements,
    open_page,
    stop_at,
    usage,
)
from tests.browser.fixtures import chromium, mock_server
from tests.browser.mock_server import MockServer, snapshot, warning
from tests.browser.node import PACKAGE, needs_tools, run_module
from tests.test_docs import ROOT, section

__all__ = ["chromium", "elements", "mock_server"]


async def test_words_can_be_replaced(elements: ElementsPage) -> None:
    await elements.begin(f'<p lang="de"><taximeter-credits></taximeter-credits>{CLOCK}</p>')
    await expect(elements.at("taximeter-credits")).to_have_text("2,50 credits")
    await elements.run(
        """() => {
          Object.assign(elements.words, { credits: { other: 'Guthaben' }, elapsed: 'Zeit' });
          elements.refresh();
        }"""
    )
    await expect(elements.at("taximeter-credits")).to_have_text("2,50 Guthaben")
    await expect(elements.page.get_by_role("timer", name="Zeit")).to_be_visible()


@pytest.mark.parametrize("lang", ["en_GB", "no language", ""])
async def test_an_unknown_language_is_that_of_the_browser(
    elements: ElementsPage, lang: str
) -> None:
    await elements.run("(lang) => { document.documentElement.lang = lang; }", lang)
    await elements.begin(CLOCK, elapsed_ms=65_000)
    await expect(elements.part("time")).to_have_text("1:05")


async def test_elements_read_from_right_to_left(elements: ElementsPage) -> None:
    await elements.run(
        "() => Object.assign(document.documentElement, { lang: 'ar-EG', dir: 'rtl' })"
    )
    line = await elements.begin(EVERYTHING, elapsed_ms=65_000)
    await line.send(**usage())
    await line.send(**warning(1))
    await expect(elements.part("time").first).to_have_text("\u0661:\u0660\u0665")
    sides = """(bar) => {
      const [inner, outer] = [bar, bar.parentElement].map((one) => one.getBoundingClientRect());
      return [inner.right - outer.right, inner.left - outer.left > 10];
    }"""
    right, is_open = await elements.part("bar").first.evaluate(sides)
    assert abs(right) <= 1
    assert is_open
    edge = await elements.part("toast").evaluate(
        "(toast) => [getComputedStyle(toast).borderRightWidth > '2px',"
        " getComputedStyle(toast).borderLeftWidth]"
    )
    assert edge == [True, "1px"]


async def test_a_page_may_style_every_colour_and_part(elements: ElementsPage) -> None:
    line = await elements.begin(f"{CLOCK}<taximeter-usage></taximeter-usage>")
    await line.send(**usage())
    await expect(elements.page.get_by_role("meter")).to_be_visible()
    await elements.run(
        """() => {
          const sheet = new CSSStyleSheet();
          sheet.replaceSync(`main { --taximeter-ok: rgb(1, 2, 3) }
            taximeter-clock::part(time) { color: rgb(4, 5, 6) }`);
          document.adoptedStyleSheets = [sheet];
        }"""
    )
    colour = "(element, name) => getComputedStyle(element)[name]"
    assert await elements.part("bar").first.evaluate(colour, "backgroundColor") == "rgb(1, 2, 3)"
    assert await elements.part("time").evaluate(colour, "color") == "rgb(4, 5, 6)"


AXE = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ['violations'] });
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html)}`);
}"""


@pytest.mark.parametrize("look", ["light", "dark", "forced"])
async def test_axe_finds_no_violation(
    chromium: Browser, mock_server: MockServer, look: Any
) -> None:
    needs_tools()
    context = await chromium.new_context(
        color_scheme="dark" if look == "dark" else "light",
        forced_colors="active" if look == "forced" else "none",
        reduced_motion="reduce",
    )
    elements = await open_page(await context.new_page(), mock_server)
    await elements.run(
        "() => Object.assign(document.documentElement.style,"
        " { colorScheme: 'light dark', background: 'Canvas' })"
    )
    await elements.page.evaluate((PACKAGE / "node_modules/axe-core/axe.min.js").read_text())
    line = await elements.begin(EVERYTHING)
    await line.send(**usage(org_used_ms=35_000_000, org_limit_ms=36_000_000))
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    assert await elements.run(AXE) == []
    await stop_at(line)
    await expect(elements.part("grace")).to_be_visible()
    assert await elements.run(AXE) == []
    line.cut()
    await expect(elements.part("as-of").first).to_be_visible()
    assert await elements.run(AXE) == []
    await context.close()


@pytest.mark.parametrize("width", [320, 640])
async def test_elements_fit_small_and_magnified_pages(elements: ElementsPage, width: int) -> None:
    """A page of 640 pixels is one of 1280 at 200 %."""
    await elements.page.set_viewport_size({"width": width, "height": 800})
    await elements.run("() => { document.documentElement.style.fontSize = '32px'; }")
    line = await elements.begin(EVERYTHING)
    await line.send(**usage())
    await line.send(**warning(1))
    await stop_at(line, "org_day_minutes")
    await expect(elements.part("grace")).to_be_visible()
    assert await elements.run("() => document.documentElement.scrollWidth") <= width


# The package


async def test_the_manifest_names_every_attribute_and_part(elements: ElementsPage) -> None:
    manifest = json.loads((PACKAGE / "custom-elements.json").read_text())
    (module,) = manifest["modules"]
    assert module["path"] == "elements.js"
    line = await elements.begin(EVERYTHING)
    await line.send(**usage(org_used_ms=30_000_000, org_limit_ms=36_000_000))
    await line.send(**usage(member_used_ms=36_000_000, org_used_ms=30, org_limit_ms=36))
    await line.send(**warning(1))
    await expect(elements.part("toast")).to_have_count(1)
    found = await elements.run(
        """() => Object.fromEntries([...main.querySelectorAll('*')]
          .filter((element) => element.shadowRoot)
          .map((element) => [element.localName, {
            name: element.constructor.name,
            attributes: element.constructor.observedAttributes,
            parts: [...element.shadowRoot.querySelectorAll('[part]')]
              .flatMap(({ part }) => [...part]),
          }]))"""
    )
    levels = {"ok", "near", "over"}
    for declared in module["declarations"]:
        given = found.pop(declared["tagName"])
        assert given["name"] == declared["name"]
        assert [one["name"] for one in declared["attributes"]] == given["attributes"]
        parts = {one["name"] for one in declared["cssParts"]}
        assert parts - levels == set(given["parts"]) - levels
        style = (PACKAGE / "elements.js").read_text() + (PACKAGE / "element-base.js").read_text()
        assert all(one["name"] in style for one in declared["cssProperties"])
    assert found == {}
    exported = {one["name"] for one in module["exports"]}
    assert exported == {one[key] for one in module["declarations"] for key in ("name", "tagName")}


def test_an_import_in_node_does_nothing() -> None:
    output = run_module(
        "const elements = await import(CORE.replace('taximeter.js', 'elements.js'));"
        "elements.use(null); elements.refresh();"
        "console.log(Object.keys(elements).join(' '), globalThis.customElements);"
    )
    assert output.split() == [
        *("TaximeterClock", "TaximeterCredits", "TaximeterElement", "TaximeterNotices"),
        *("TaximeterUsage", "refresh", "use", "words", "undefined"),
    ]


def test_only_elements_have_side_effects() -> None:
    package = json.loads((PACKAGE / "package.json").read_text())
    assert package["sideEffects"] == ["./elements.js"]
    assert package["customElements"] == "custom-elements.json"


async def test_the_five_lines_of_the_guide_are_an_app(elements: ElementsPage) -> None:
    """Its module runs as a script: the policy forbids inline modules."""
    guide = section(ROOT / "docs" / "in-your-app.md", "Elements")
    html = guide.partition("```html\n")[2].partition("```")[0]
    module, _, body = html.partition("</script>")
    script = re.sub(
        r"import (.*) from '(.*)';",
        r"const \1 = await import('\2');",
        module.partition(">")[2],
    )
    await elements.run(f"async () => {{ const fetchToken = () => 'token-1'; {script} }}")
    await elements.put(body)
    line = await elements.server.line()
    await line.welcome()
    start = await line.receive("start")
    given = {**snapshot(elapsed_ms=5_000), "session_id": start["session_id"]}
    await line.answer(start, **given)
    await expect(elements.part("time")).to_have_text(re.compile("^0:0[5-9]$"))
    await line.send(**{**warning(1), "session_id": start["session_id"]})
    await expect(elements.part("toast-text")).to_have_text("Your credits run out in 1:00.")
