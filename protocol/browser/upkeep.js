/**
 * What keeps a connection well: renewed tokens, dead lines, moves, and returns from sleep.
 */

import { Unauthorized } from './errors.js';
import { fetchAs } from './http.js';

/** A waking page asks a line that was silent for longer. */
const PROBE_AFTER_MS = 1_000;
/** A token is renewed earlier than this: above a minute, for a hidden page's timers. */
const LEAD_LEAST_MS = 75_000;
const LEAD_MOST_MS = 120_000;

/**
 * Starts to measure; the result gives the milliseconds since.
 *
 * The monotonic clock of some browsers stands still while the machine sleeps, so the clock of
 * the wall is asked, too. `sleptMs()` of the result gives the difference.
 */
function stopwatch({ now }) {
  const [at, wallAt] = [now(), Date.now()];
  const measure = () => Math.max(now() - at, Date.now() - wallAt);
  measure.sleptMs = () => Date.now() - wallAt - (now() - at);
  return measure;
}

/**
 * The delay until a token that lives for `lifeMs` is renewed.
 *
 * The renewal is due when a fifth of that life is left, bounded by 75 s and two minutes. If
 * that is more than half of the life, it is due at half of the life.
 */
function renewalDelayMs(lifeMs) {
  const leadMs = Math.max(LEAD_LEAST_MS, Math.min(LEAD_MOST_MS, lifeMs / 5));
  return lifeMs - Math.min(lifeMs / 2, leadMs);
}

/**
 * The upkeep of one meter, on one live line after another.
 *
 * It renews the token, detects a dead line, moves to another process when this one drains,
 * returns from sleep, and ends stopped sessions when the page closes. It owns the timers
 * `refresh` and `drain`, and `watchdog` while the line is live.
 */
export class Upkeep {
  #meter;
  #joinAll;
  #pingMs = 0;
  #heard = null; // measures the time since the last message of a live line
  #away = null; // measures the same, from the line before this one
  #isAsked = false; // whether a ping was sent since the last message
  #joining = null; // the line on which all sessions are being joined

  /** `joinAll` joins the sessions again on the present line. */
  constructor(meter, joinAll) {
    this.#meter = meter;
    this.#joinAll = joinAll;
  }

  /** Notes a message, before anything else takes it. */
  hear(message) {
    const { state, _platform, _timers } = this.#meter;
    const isWelcome = message.type === 'welcome';
    if (!isWelcome && state !== 'live') return;
    if (state !== 'live') this.#away = this.#heard;
    this.#heard = stopwatch(_platform);
    this.#isAsked = false;
    if (message.type === 'reconnect') {
      // From the stream itself: a WebSocket gets through.
      if (message.by) this.#meter._isBlocked = false;
      // A random instant spreads the clients.
      _timers.arm('drain', _platform.random() * message.after_ms, () => this.#move());
    }
    if (!isWelcome) return;
    this.#meter._lastToken = this.#meter._token;
    this.#pingMs = message.ping_ms;
    this.#watch();
    const { expires_at, server_time_at } = message;
    if (expires_at) this.#armRefresh(_platform.now() + expires_at - server_time_at);
  }

  /**
   * Reports what the sessions have missed, once all are joined.
   *
   * `isReturn`: the page was away. Otherwise it may have been hidden only, with a quiet line,
   * and `resumed` goes out only if something was missed.
   */
  async report(joins, isReturn = true) {
    const meter = this.#meter;
    const [line, away] = [meter._line, this.#away];
    this.#away = null;
    this.#joining = line;
    const away_ms = away && Math.round(away());
    const missed = await Promise.all(
      joins.map(async ({ session, isNew, joined }) => {
        const missed = (await joined)?.missed ?? [];
        const isNews = away && (isReturn || missed.length);
        if (isNews && !isNew) session._emit('resumed', { away_ms, missed });
        return missed;
      }),
    );
    if (line === this.#joining) this.#joining = null;
    if (line !== meter._line) return;
    meter._letGo();
    const all = missed.flat();
    if (away && (isReturn || all.length)) meter._emit('resumed', { away_ms, missed: all });
  }

  /** Forgets the past: the connection was given up. */
  reset() {
    this.#away = this.#heard = null;
  }

  /** Ends sessions over HTTP, because a `stop` without an answer would be lost with the page. */
  stopAll() {
    for (const { stopWanted, sessionId } of this.#meter._sessions.values()) {
      if (!stopWanted || !this.#meter._lastToken) continue;
      const path = `sessions/${encodeURIComponent(sessionId)}/stop`;
      fetchAs(this.#meter, path, { method: 'POST', keepalive: true }).catch(() => {});
    }
  }

  /** Looks after a live line when the page, network or machine is back. */
  wake({ type, persisted: isPersisted }) {
    const meter = this.#meter;
    const silentMs = this.#heard();
    // The server has given up a client that was silent for two of its pings, and a page in the
    // back/forward cache has lost its line.
    const isStale = silentMs > 2 * this.#pingMs && meter._sessions.size;
    if (isPersisted || isStale) this.#move();
    else if (silentMs >= PROBE_AFTER_MS && this.#joining !== meter._line) {
      this.#ping();
      this.#watch();
      this.#away = this.#heard;
      const isReturn = type !== 'visibilitychange' || this.#heard.sleptMs() >= PROBE_AFTER_MS;
      this.report(this.#joinAll(), isReturn);
    }
  }

  /** Connects anew before it closes the present line, which keeps our sessions alive. */
  #move() {
    const meter = this.#meter;
    meter._timers.disarm('drain');
    meter._letGo();
    meter._leaving = meter._line;
    meter._leaving?.mute();
    meter._dropped();
    meter._connect();
  }

  #ping() {
    this.#isAsked = true;
    this.#meter._line.send({ type: 'ping' });
  }

  /**
   * Detects a dead line that the browser has not detected.
   *
   * After `ping_ms` of silence it sends a ping, and after as much silence again it closes the
   * line. A late timer means that this page slept, and proves nothing about the line.
   */
  #watch() {
    const { _line: line, _platform: platform, _timers: timers } = this.#meter;
    const pingMs = this.#pingMs;
    timers.disarm('watchdog');
    if (!(pingMs > 0)) return;
    const dueAt = platform.now() + pingMs;
    timers.arm('watchdog', pingMs, () => {
      const isSilent = this.#heard() >= pingMs;
      if (isSilent && this.#isAsked && platform.now() - dueAt < pingMs) return line.declareDead();
      if (isSilent) this.#ping();
      return this.#watch();
    });
  }

  /**
   * Arms the renewal of the token.
   *
   * If a renewal fails, the client tries again. If all renewals fail, the server closes with
   * 4002, and the client reconnects with a new token.
   */
  #armRefresh(expiresAt) {
    const lifeMs = expiresAt - this.#meter._platform.now();
    if (typeof this.#meter._options.token !== 'function' || lifeMs < 1_000) return;
    const delayMs = renewalDelayMs(lifeMs);
    this.#meter._timers.arm('refresh', delayMs, () => this.#refresh(expiresAt));
  }

  async #refresh(expiresAt) {
    const meter = this.#meter;
    const line = meter._line;
    try {
      const token = await meter._freshToken();
      if (line !== meter._line) return; // a newer line has a token of its own
      this.#armRefresh(expiresAt);
      await meter._ask({ type: 'refresh', token }, null, false);
    } catch (error) {
      if (line !== meter._line) return;
      if (error instanceof Unauthorized) return void meter._fail(error);
      this.#armRefresh(expiresAt);
      meter._emit('error', error);
    }
  }
}
