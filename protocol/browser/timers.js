/**
 * Timers by name, each of which waits for one thing at most.
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
    const fire = () => {
      this.#armed.delete(name);
      callback();
    };
    const timer = this.#platform.setTimeout(fire, Math.min(delayMs, DELAY_MOST_MS));
    this.#armed.set(name, timer);
  }

  /** Forgets what these names wait for. */
  disarm(...names) {
    for (const name of names) {
      if (this.#armed.has(name)) this.#platform.clearTimeout(this.#armed.get(name));
      this.#armed.delete(name);
    }
  }

  isArmed(name) {
    return this.#armed.has(name);
  }
}
