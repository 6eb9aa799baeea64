/**
 * One WebSocket: what is sent, what is heard, and whether it still lives.
 */

import { TaximeterError } from './errors.js';

/** More than this unsent means a line that does not drain: nothing is piled on top of it. */
const UNSENT_MOST_BYTES = 65_536;
/** A line that was silent for longer than this when the page wakes is asked for an answer. */
const PROBE_AFTER_MS = 1_000;

/**
 * A line from its first attempt on. `listeners` are `opened()`, `received(message)` and
 * `lost(code, reason)`; after `mute()` or `close()` none is called. The timer `watchdog` of
 * `timers` is the line's while it is heard.
 *
 * Throws a TaximeterError where the browser makes no socket.
 */
export class Line {
  #platform;
  #timers;
  #socket;
  #lost;
  #pingMs = 0;
  #heardAt;
  #isAsked = false; // whether a ping of ours waits for anything at all to be heard

  constructor(url, { platform, timers, timeoutMs }, { opened, received, lost }) {
    this.#platform = platform;
    this.#timers = timers;
    this.#lost = lost;
    this.#heardAt = platform.now();
    const socket = this.#dial(url);
    this.#socket = socket;
    let silence = 'The server does not answer, or it refuses this page.';
    timers.arm('watchdog', timeoutMs, () => this.#declareDead());
    socket.onopen = () => {
      silence = '';
      opened();
    };
    socket.onmessage = ({ data }) => {
      this.#heardAt = this.#platform.now();
      this.#isAsked = false;
      received(JSON.parse(data));
      this.#timers.check(); // messages wake a hidden page more often than its timers do
    };
    socket.onclose = ({ code, reason }) => {
      this.mute();
      lost(code, reason || silence);
    };
  }

  /** Sends what the line can take. What it cannot is the caller's to send again. */
  send(message, unsentMostBytes = UNSENT_MOST_BYTES) {
    const socket = this.#socket;
    if (socket.readyState !== 1 || socket.bufferedAmount > unsentMostBytes) return;
    socket.send(JSON.stringify(message));
  }

  /**
   * Notices a dead line that the browser has not noticed: asks after a silence, and hangs up
   * after a second one. A late timer means that this page slept, and proves nothing.
   */
  watch(pingMs) {
    this.#pingMs = pingMs;
    this.#timers.disarm('watchdog');
    if (!(pingMs > 0)) return;
    const dueAt = this.#platform.now() + pingMs;
    this.#timers.arm('watchdog', pingMs, () => {
      const now = this.#platform.now();
      const isSilent = now - this.#heardAt >= pingMs;
      if (isSilent && this.#isAsked && now - dueAt < pingMs) return this.#declareDead();
      if (isSilent) this.send({ type: 'ping' });
      this.#isAsked = isSilent;
      return this.watch(pingMs);
    });
  }

  /** The line may have died while the page slept: an answer is due within one silence. */
  probe() {
    if (this.#platform.now() - this.#heardAt < PROBE_AFTER_MS) return;
    this.send({ type: 'ping' });
    this.#isAsked = true;
    this.watch(this.#pingMs);
  }

  /** What it still says is no longer heard; the server still takes it for alive. */
  mute() {
    const socket = this.#socket;
    if (!socket.onclose) return; // by now the watchdog is another line's
    this.#timers.disarm('watchdog');
    socket.onopen = socket.onmessage = socket.onclose = null;
  }

  close() {
    this.mute();
    this.#socket.close(1000);
  }

  #dial(url) {
    try {
      return new this.#platform.WebSocket(url.href, 'taximeter.v1');
    } catch (cause) {
      const isForbidden = cause?.name === 'SecurityError';
      const details = { retryable: !isForbidden, cause };
      const text = `The browser opens no WebSocket to ${url.host}.`;
      throw new TaximeterError(isForbidden ? 'forbidden' : 'unavailable', text, details);
    }
  }

  #declareDead() {
    this.close();
    this.#lost(1006, 'The line is dead.');
  }
}
