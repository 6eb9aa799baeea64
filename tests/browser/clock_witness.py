"""A page's clock on a slow machine and network."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from playwright.async_api import Browser

from tests.fixtures.blocking_proxy import blocking_proxy

SESSION = "clock-1"
BEGIN = """async ([token, kind, id]) => {
  const { Taximeter } = await import('/client/taximeter.js');
  const { use } = await import('/client/elements.js');
  const meter = new Taximeter({ token });
  use(meter);
  const clock = `<taximeter-clock session="${id}" kind="${kind}"></taximeter-clock>`;
  document.body.innerHTML = `<main>${clock}</main>`;
  const session = meter.find(id);
  const time = document.querySelector('taximeter-clock').shadowRoot.querySelector('[part=time]');
  const seen = { frames: [], writes: 0 };
  new MutationObserver((changes) => { seen.writes += changes.length; })
    .observe(time, { childList: true, characterData: true, subtree: true });
  // What a person sees: the text, and the figure behind it, in each frame.
  const look = () => {
    const reading = session.now();
    if (reading) {
      const seconds = time.textContent.split(':').reduce((sum, part) => sum * 60 + Number(part), 0);
      seen.frames.push([Date.now(), reading.elapsed_ms, seconds]);
    }
    seen.next = requestAnimationFrame(look);
  };
  look();
  const reached = new Promise((resolve) => session.addEventListener(
    'limit_reached', ({ detail }) => resolve(detail)));
  await session.ready;
  Object.assign(window, { meter, session, seen, reached });
}"""
END = """async () => {
  const { elapsed_ms } = await reached;
  const many = seen.frames.length;
  while (seen.frames.length < many + 3) await new Promise(requestAnimationFrame);
  cancelAnimationFrame(seen.next);
  const { receipt } = await session.stop();
  return { ...seen, limit_ms: elapsed_ms, started_at: receipt.segments[0].from_at };
}"""


class ClockFigures(NamedTuple):
    """What a clock shows up to its limit, and after it."""

    frames: list[tuple[float, float, float]]
    """For each: the instant, the figure in ms, and the seconds shown."""
    writes: int
    """How often the text was written."""
    limit_ms: float
    started_at: float

    @property
    def back_ms(self) -> float:
        """The longest step back, of the text or of the figure."""
        steps = [
            max(earlier[1] - later[1], 1000 * (earlier[2] - later[2]))
            for earlier, later in zip(self.frames, self.frames[1:], strict=False)
        ]
        return max([0, *steps])

    @property
    def beyond_ms(self) -> float:
        """How far the text or the figure went beyond the limit."""
        return max(0, *(max(frame[1], 1000 * frame[2]) - self.limit_ms for frame in self.frames))

    def off_ms(self, speed: float = 1) -> list[float]:
        """How far each frame was from the server's time, sorted."""
        true = [min(speed * (at - self.started_at), self.limit_ms) for at, _, _ in self.frames]
        return sorted(
            abs(frame[1] - now_ms) for frame, now_ms in zip(self.frames, true, strict=True)
        )


async def watch_clock(
    browser: Browser, port: int, token: str, kind: str, *, cpu_rate: float, delay_s: float
) -> ClockFigures:
    """Runs a session to its limit in a page of the server.

    The processor is ``cpu_rate`` times slower, and every byte takes ``delay_s`` each way.
    """
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(blocking_proxy(port, None))
        context = await browser.new_context()
        stack.push_async_callback(context.close)
        page = await context.new_page()
        await page.route("**/pages/demo.js", lambda route: route.abort())
        await page.goto(f"{proxy.url}/")
        await page.evaluate("async () => { await import('/client/elements.js'); }")
        proxy.delay_s = delay_s
        devtools = await context.new_cdp_session(page)
        await devtools.send("Emulation.setCPUThrottlingRate", {"rate": cpu_rate})
        await page.evaluate(BEGIN, [token, kind, SESSION])
        found: Any = await page.evaluate(END)
        await asyncio.shield(devtools.send("Emulation.setCPUThrottlingRate", {"rate": 1}))
        return ClockFigures(
            [tuple(frame) for frame in found["frames"]],
            found["writes"],
            found["limit_ms"],
            found["started_at"],
        )
