/**
 * Timers by name, each of which waits for one thing at most.
 *
 * What a name waits for is an instant, not a delay: browsers run the timers of a hidden page
 * once a minute. Call `check()` whenever the page is awake anyway.
 */

/** The longest delay that a browser's timer takes; beyond it, it would fire at once. */
const DELAY_MOST_MS = 2 ** 31 - 1;

export class Timers {
  #platform;
  #armed = new Map();

  constructor(platform) {
    this.#platform = platform;
  }

  /** Calls back once, after `delayMs`; what this name waited for before is forgotten. */
  arm(name, delayMs, callback) {
    this.disarm(name);
    const entry = { dueAt: this.#platform.now() + delayMs, callback };
    this.#armed.set(name, entry);
    this.#wait(entry);
  }

  /** Forgets what these names wait for. */
  disarm(...names) {
    for (const name of names) {
      if (this.#armed.has(name)) this.#platform.clearTimeout(this.#armed.get(name).timer);
      this.#armed.delete(name);
    }
  }

  /** Forgets everything. */
  clear() {
    this.disarm(...this.#armed.keys());
  }

  isArmed(name) {
    return this.#armed.has(name);
  }

  /** Calls back whatever is due, also where the browser's timer is late. */
  check() {
    for (const [name, entry] of [...this.#armed]) {
      // One callback may have disarmed, or armed anew, what comes after it.
      if (this.#armed.get(name) !== entry || entry.dueAt > this.#platform.now()) continue;
      this.disarm(name);
      entry.callback();
    }
  }

  #wait(entry) {
    const delayMs = Math.min(Math.max(0, entry.dueAt - this.#platform.now()), DELAY_MOST_MS);
    entry.timer = this.#platform.setTimeout(() => {
      if (entry.dueAt > this.#platform.now()) this.#wait(entry);
      else this.check();
    }, delayMs);
  }
}
