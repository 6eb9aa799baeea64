/**
 * One WebSocket: sending, receiving, and its loss.
 */

import { TaximeterError } from './errors.js';

/** With more unsent bytes than this, the line is full. */
const UNSENT_MOST_BYTES = 65_536;

/** The address, resolved as the page resolves it, with the scheme `ws` or `http`. */
export function addressOf(url, scheme) {
  return new URL(url, globalThis.location?.href).href.replace(/^(ws|http)/, scheme);
}

function dial(WebSocket, url, platform) {
  try {
    return new WebSocket(addressOf(url, 'ws'), 'taximeter.v1', platform);
  } catch (cause) {
    const isForbidden = cause?.name === 'SecurityError';
    const isUseless = isForbidden || cause instanceof TypeError; // no URL, or no WebSocket
    const details = { retryable: !isUseless, cause };
    const text = `No WebSocket can be opened to ${url}.`;
    throw new TaximeterError(isForbidden ? 'forbidden' : 'unavailable', text, details);
  }
}

/**
 * A line, from its first attempt to connect until its loss.
 *
 * The last argument has the listeners `opened()`, `received(message)` and
 * `lost(code, reason)`; after `mute()` or `close()` the line calls none of them. Until then
 * the line has the timer `watchdog` of `timers`: the line is dead if it is armed for as long
 * as `timeoutMs`.
 *
 * Throws a TaximeterError if the browser makes no socket.
 */
export class Line {
  #timers;
  #socket;
  #lost;

  constructor(url, { platform, timers, timeoutMs, WebSocket }, { opened, received, lost }) {
    this.#timers = timers;
    this.#lost = lost;
    const socket = dial(WebSocket, url, platform);
    this.#socket = socket;
    let silence = 'The server does not answer, or it refuses this page.';
    timers.arm('watchdog', timeoutMs, () => this.declareDead());
    socket.onopen = () => {
      silence = '';
      opened();
    };
    socket.onmessage = ({ data }) => {
      received(JSON.parse(data));
      timers.check(); // messages wake a hidden page more often than timers do
    };
    socket.onclose = ({ code, reason }) => {
      this.mute();
      lost(code, reason || silence);
    };
  }

  /** Sends a message; if the line is full, the caller repeats it. */
  send(message, unsentMostBytes = UNSENT_MOST_BYTES) {
    const socket = this.#socket;
    if (socket.readyState !== 1 || socket.bufferedAmount > unsentMostBytes) return;
    socket.send(JSON.stringify(message));
  }

  /** Stops listening. For the server the line stays alive. */
  mute() {
    const socket = this.#socket;
    if (!socket.onclose) return; // already muted: by now another line has the watchdog
    this.#timers.disarm('watchdog');
    socket.onopen = socket.onmessage = socket.onclose = null;
  }

  close(code = 1000) {
    this.mute();
    this.#socket.close(code);
  }

  /** Closes a line that the browser takes for alive, and reports its loss. */
  declareDead(reason = 'The line is dead.') {
    this.close(3000);
    this.#lost(1006, reason);
  }
}
