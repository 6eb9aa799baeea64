/**
 * Timers with names; each name waits for one callback at most.
 *
 * A timer is an instant, not a delay, because browsers run the timers of a hidden page once a
 * minute. Call `check()` whenever the page is awake.
 */

/** The longest delay of a browser's timer; longer ones fire at once. */
const DELAY_MOST_MS = 2 ** 31 - 1;

export class Timers {
  #platform;
  #armed = new Map();

  constructor(platform) {
    this.#platform = platform;
  }

  /** Calls back once, after `delayMs`; replaces this name's earlier callback. */
  arm(name, delayMs, callback) {
    this.disarm(name);
    const entry = { dueAt: this.#platform.now() + delayMs, callback };
    this.#armed.set(name, entry);
    this.#wait(entry);
  }

  /** Cancels the callbacks of these names. */
  disarm(...names) {
    for (const name of names) {
      if (this.#armed.has(name)) this.#platform.clearTimeout(this.#armed.get(name).timer);
      this.#armed.delete(name);
    }
  }

  /** Cancels all callbacks. */
  clear() {
    this.disarm(...this.#armed.keys());
  }

  isArmed(name) {
    return this.#armed.has(name);
  }

  /** Makes every callback that is due, even if timers are late. */
  check() {
    for (const [name, entry] of [...this.#armed]) {
      // An earlier callback may have disarmed or rearmed this name.
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
