/**
 * What a live line needs: it joins the sessions, and takes their messages.
 *
 * The core imports this module as soon as a line is open, because nothing before the first
 * `welcome` needs it.
 */

import { TaximeterError } from './errors.js';
import { Figures } from './figures.js';
import { Upkeep } from './upkeep.js';

/** How often a start is repeated while the server is busy. */
const START_RETRIES = 3;
/** What a `welcome` says of a login: a token may be that of another account of the same user. */
const WHO = ['user_id', 'org_id', 'account_id'];

/** The sessions of one meter on its live lines, until a log-out. */
export class Live {
  #meter;
  #upkeep;

  constructor(meter) {
    this.#meter = meter;
    this.#upkeep = new Upkeep(meter, () => this.#joinAll());
  }

  /**
   * Notes that the server was heard; comes before `take`.
   *
   * A token function may give a token of another user without a word: then this is a change of
   * user like any other, but nothing that the page shows has asked for it.
   */
  hear(message) {
    const meter = this.#meter;
    const { welcome } = meter;
    const isSame = (name) => welcome[name] === message[name];
    if (message.type !== 'welcome' || !welcome || WHO.every(isSame)) this.#upkeep.hear(message);
    else {
      meter._login -= 1; // so it stays what it is
      meter.switchUser(meter._options.token);
    }
  }

  /** Joins the sessions on a new line, those that are to stop first. */
  begin() {
    this.#upkeep.report(this.#joinAll((session) => this.#repeat(session)));
  }

  /** Forgets the past: the connection was given up. */
  reset() {
    this.#upkeep.reset();
  }

  /** Ends over HTTP what is to stop: the page closes, or the meter leaves its sessions. */
  stopAll() {
    this.#upkeep.stopAll();
  }

  /** Takes the page back from sleep, or from the back/forward cache. */
  wake(event) {
    this.#upkeep.wake(event);
  }

  /** Joins each session; promises, for each, what it has missed. */
  #joinAll(then = () => {}) {
    const sessions = [...this.#meter._sessions.values()];
    sessions.sort((a, b) => b.stopWanted - a.stopWanted);
    return sessions.map((session) => {
      const isNew = session.snapshot === null;
      const joined = this.join(session);
      then(session);
      return { session, isNew, joined };
    });
  }

  /** Sends again what a session asks for, also a `stop` that nothing waits for any more. */
  #repeat(session) {
    const waiting = this.#meter._requests.of(session).filter((entry) => entry.resend);
    for (const entry of waiting) this.#meter._transmit(entry);
    this.#stopAgain(session);
  }

  /** Carries out a wish to stop that nothing on the line asks for. */
  #stopAgain(session) {
    const { _requests } = this.#meter;
    if (session.stopWanted && !_requests.hasStop(session)) session.stop().catch(() => {});
  }

  /** Starts, joins or watches a session; promises its snapshot, or undefined. */
  async join(session, attempt = 0) {
    const meter = this.#meter;
    const timer = `join ${session.sessionId}`;
    meter._timers.disarm(timer);
    if (meter.state !== 'live' || !meter._has(session)) return;
    session._figures ??= new Figures(session);
    session._error = null;
    session._change();
    try {
      // JSON omits undefined fields.
      const request = { ...session._request, last_seq: session.lastSeq };
      const joined = await meter._ask(request, session, false);
      // The server knew no session when it was to stop, and has it now.
      if (meter._has(session)) this.#stopAgain(session);
      return joined;
    } catch (error) {
      if (!meter._has(session)) return; // left meanwhile
      if (['disconnected', 'closed'].includes(error.code)) return; // the reconnect joins it
      // A running session must survive a server that is busy for a moment, and so must a
      // session whose start was carried out although its answer timed out. When the server
      // keeps refusing a start, or gives no time for it (a full account), the caller repeats it.
      const isBusy = error.code === 'unavailable' || error.retryAfterMs !== null;
      const mayStart = isBusy && attempt < START_RETRIES;
      if (error.code === 'timeout' || (error.retryable && session.snapshot) || mayStart) {
        const delayMs = Math.max(meter._backoffMs(attempt), error.retryAfterMs);
        meter._timers.arm(timer, delayMs, () => this.join(session, attempt + 1));
        return;
      }
      meter._sessions.delete(session.sessionId); // those who hold it see why
      session._fail(error);
    }
  }

  /** Tells the server that a session is left; nothing of it is repeated. */
  leave(session) {
    const meter = this.#meter;
    // `leave` has no answer and no repetition, so it is sent even on a full line. A line that is
    // being left for another keeps the session alive, too.
    for (const line of [meter.state === 'live' && meter._line, meter._leaving]) {
      if (line) line.send({ type: 'leave', session_id: session.sessionId }, Infinity);
    }
    for (const entry of meter._requests.of(session)) {
      entry.resend = false;
      meter._timers.disarm(`request ${entry.message.id}`);
    }
  }

  /** Takes a message that is neither `welcome` nor `error`; it may answer a request. */
  take(message) {
    const meter = this.#meter;
    const { type } = message;
    if (type === 'credit') this.#takeCredit(message);
    if (type === 'usage') {
      meter._usage = message;
      meter._emit(type, message);
    }
    const session = meter._sessions.get(message.session_id);
    if (message.credits && session?._request.type === 'start') meter._noteCredits(message);
    session?._figures?.receive(message);
    meter._requests.get(message.id)?.resolve(message);
    if (session && (type === 'stopped' || session.state === 'ended')) {
      this.#finish(session, message);
    }
  }

  #takeCredit(message) {
    const isOurs = message.account_id === this.#meter.welcome?.account_id;
    // A listener may change the sessions.
    const sessions = isOurs ? [...this.#meter._sessions.values()] : [];
    if (isOurs) this.#meter._noteCredits(message);
    this.#meter._emit('credit', message);
    for (const session of sessions) session._figures?.credit(message);
  }

  /** Settles the requests of a session that has ended. */
  #finish(session, message) {
    if (!this.#meter._has(session)) return; // a listener has left it
    this.#meter._sessions.delete(session.sessionId);
    const error = new TaximeterError('session_ended', 'The session has ended.');
    for (const entry of this.#meter._requests.of(session)) {
      if (entry.message.type === 'stop' && message.type === 'stopped') entry.resolve(message);
      else entry.reject(error);
    }
  }
}
