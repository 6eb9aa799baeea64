/**
 * Requests that wait for their answers.
 */

import { TaximeterError } from './errors.js';

/** The server's bound; it would close the connection at each larger message. */
const MESSAGE_MOST_BYTES = 16_384;

const sizeOf = (message) => new TextEncoder().encode(JSON.stringify(message)).length;

/**
 * The requests under way, each as an entry.
 *
 * An entry has the `message` with its id, the `session` that asks, whether a later line is to
 * `resend` the message, the instant `dueAt` of its time-out, and `promise`. Its `resolve` and
 * `reject` settle the promise and remove the entry.
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

  /** Adds a request; it rejects on a time-out, or if too large. */
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

  /** The entry under way of this id. */
  get(id) {
    return this.#entries.get(id);
  }

  /** A copy of the entries, of all sessions or of one. */
  of(session) {
    const entries = [...this.#entries.values()];
    return session ? entries.filter((entry) => entry.session === session) : entries;
  }

  /** Whether a `stop` of this session waits for its answer. */
  hasStop(session) {
    return this.of(session).some(({ message }) => message.type === 'stop');
  }
}
