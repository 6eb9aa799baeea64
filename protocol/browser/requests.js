/**
 * Requests under way, and the promises of their answers.
 */

import { TaximeterError } from './errors.js';

/** The server's bound; beyond it the connection would be closed, time and again. */
const MESSAGE_MOST_BYTES = 16_384;

const sizeOf = (message) => new TextEncoder().encode(JSON.stringify(message)).length;

/**
 * Each request is an entry: the `message` with its id, the `session` that asks, whether a
 * later line is to `resend` it, until when it waits (`dueAt`), and `promise`, `resolve` and
 * `reject`, which forget it.
 */
export class Requests {
  #platform;
  #timeoutMs;
  #entries = new Map();
  #lastId = 0;

  constructor(platform, timeoutMs) {
    this.#platform = platform;
    this.#timeoutMs = timeoutMs;
  }

  /** A new request. It rejects when no answer comes in time, or when it is too large. */
  add(body, session, resend) {
    const id = ++this.#lastId;
    const message = { ...body, id };
    const entry = { message, session, resend, dueAt: this.#platform.now() + this.#timeoutMs };
    entry.promise = new Promise((resolve, reject) => {
      const settle = (settler) => (value) => {
        this.#platform.clearTimeout(timer);
        this.#entries.delete(id);
        settler(value);
      };
      Object.assign(entry, { resolve: settle(resolve), reject: settle(reject) });
    });
    const timer = this.#platform.setTimeout(() => {
      const text = `No answer to ${message.type} in time.`;
      entry.reject(new TaximeterError('timeout', text, { retryable: true }));
    }, this.#timeoutMs);
    this.#entries.set(id, entry);
    if (sizeOf(message) > MESSAGE_MOST_BYTES) {
      entry.reject(new TaximeterError('bad_message', 'The message is over 16 KiB.'));
    }
    return entry;
  }

  get(id) {
    return this.#entries.get(id);
  }

  /** Those that are under way, of all sessions or of one; they may be settled meanwhile. */
  of(session) {
    const entries = [...this.#entries.values()];
    return session ? entries.filter((entry) => entry.session === session) : entries;
  }

  has(entry) {
    return this.#entries.has(entry.message.id);
  }
}
