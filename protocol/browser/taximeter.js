/**
 * The browser client: one WebSocket with any number of sessions on it.
 *
 *     const meter = new Taximeter({ url: '/v1/ws', token: () => fetchToken() });
 *     const session = meter.start({ kind: 'chat', sessionId: 'chat-17' });
 *     session.addEventListener('limit_warning', ({ detail }) => warn(detail.remaining_ms));
 *     session.addEventListener('stopped', ({ detail }) => show(detail.receipt));
 *     const { elapsed_ms, credits } = session.now();      // call this for each frame
 *     await session.stop();
 *
 * The server counts, the browser shows. This code decides nothing that is billed:
 * `session.now()` estimates figures between two ticks, and the next message replaces the
 * estimate. This code keeps no session alive either: the browser itself answers the server's
 * pings. So a background tab, whose timers are throttled, loses no session.
 *
 * Fields have the names and units of the wire: `_ms` is milliseconds, `_at` epoch
 * milliseconds, credits are decimal strings. The types are in taximeter.d.ts.
 */

import { Connection } from './connection.js';
import { TaximeterError, Unauthorized, comesBackAfter } from './errors.js';
import { Session } from './session.js';

export { Session, TaximeterError, Unauthorized, comesBackAfter };

/**
 * The sessions of a user, on one connection to a Taximeter server.
 *
 * It connects with the first `start`, `retain` or `watch`, or with `connect()`, and
 * reconnects by itself unless the protocol forbids that. Before that it opens, arms and hears
 * nothing, so that a server may make one, too.
 *
 * Events: `connection`, `welcome`, `credit` (the account has changed), `usage`, `error`,
 * `resumed` (the page is back, and its sessions are joined).
 * It is a store too: `subscribe` and `getSnapshot` give the connection, user and balance.
 */
export class Taximeter extends Connection {
  #held = new Map(); // by session id: those that retain() gave, until their last release

  /** Starts a session, or joins it if it runs already. */
  start(options) {
    return this.#start(options, true);
  }

  /**
   * A session that components hold together; it has one more holder afterwards.
   *
   * The first call starts the session, and the next one after a failure starts it again. Call
   * `release()` of the session once for each call.
   */
  retain(options) {
    let session = this.find(options.sessionId);
    const isLost = session?._error && !this._has(session);
    if (session?._request.type !== 'start' || isLost) session = this.#start(options, false);
    this.#held.set(session.sessionId, session);
    return session.retain();
  }

  /**
   * The session of this id that this page runs, watches or holds.
   *
   * The meter calls its subscribers when there is a new one.
   */
  find(sessionId) {
    return this.#held.get(sessionId) ?? this._sessions.get(sessionId);
  }

  /**
   * Follows a session without keeping it alive.
   *
   * Operators name the session's tenant: `org` for an organisation, or `user` for a user
   * without one.
   */
  watch(sessionId, { lastSeq, org, user } = {}) {
    const request = { type: 'watch', session_id: sessionId, org, user };
    const session = this._sessions.get(sessionId) ?? this.#open(request, lastSeq);
    session._watch = request;
    return session;
  }

  /**
   * Leaves every session of the user, and connects with the token of another.
   *
   * Nothing that concerns the old user is heard afterwards. Without a token it logs out: the
   * state is `idle`, and nothing is open or armed.
   */
  switchUser(token = null) {
    this.#assertOpen();
    this._login += 1;
    this.#end('idle', 'The user has changed.', token);
    if (token !== null) this.connect();
  }

  /** Leaves every session and closes the connection for good. */
  close() {
    this.#end('closed', 'The connection was closed.');
  }

  /** Lets go of everything; the server takes the closed line as leave. */
  #end(state, text, token) {
    this._logOut(token);
    const error = new TaximeterError('closed', text);
    const sessions = [...this.#held.values(), ...this._sessions.values()];
    this.#held.clear();
    this._sessions.clear();
    this._giveUp(state, error);
    for (const session of sessions) {
      session._figures = null; // a clock that has this session shows nothing of the old user
      session._leave(error);
    }
  }

  #assertOpen() {
    if (this.state === 'closed') throw new TaximeterError('closed', 'The connection was closed.');
  }

  #start({ kind, sessionId, counterpartId, tickMs, metadata, lastSeq }, isOwned) {
    const optional = { counterpart_id: counterpartId, tick_ms: tickMs, metadata };
    const request = { type: 'start', kind, session_id: sessionId, ...optional };
    return this.#open(request, lastSeq, isOwned);
  }

  /** Opens a session; one that is owned is left by `leave()` only. */
  #open(request, lastSeq, isOwned = true) {
    this.#assertOpen();
    const sessionId = request.session_id;
    const known = this._sessions.get(sessionId) ?? this.#held.get(sessionId)?._again();
    const session = known ?? new Session(sessionId, this, lastSeq);
    this._sessions.set(sessionId, session);
    Object.assign(session, { _request: request, _isOwned: isOwned });
    this._tell(); // what shows this session finds it now
    if (this.state === 'live') this._live.join(session);
    else this._begin();
    return session;
  }

  /** @internal Whether it is still a session of this meter. */
  _has(session) {
    return this._sessions.get(session.sessionId) === session;
  }

  /** @internal Looks, after a macrotask, whether a session without holders is to be left. */
  _idle(session) {
    this._platform.setTimeout(() => this.#leaveIdle(session), 0);
  }

  /**
   * Leaves a session that has got no new holder meanwhile.
   *
   * One that stops ends by itself, unless the server refuses the stop: then it is left, because
   * it would go on without anything that shows it.
   */
  #leaveIdle(session) {
    if (session._isHeld) return;
    const { sessionId, stopWanted, _isOwned } = session;
    if (this.#held.get(sessionId) === session) this.#held.delete(sessionId);
    const isStopping = stopWanted && (this._requests.hasStop(session) || this.state !== 'live');
    if (isStopping || _isOwned) return;
    if (!session._watch) this._leaveSession(session);
    else {
      session._request = session._watch;
      this._live?.leave(session);
      this._live?.join(session);
    }
  }

  /** @internal */
  _leaveSession(session) {
    if (!this._has(session)) return;
    const { sessionId } = session;
    this._sessions.delete(sessionId);
    this.#held.delete(sessionId);
    this._timers.disarm(`join ${sessionId}`);
    // A line that is lost has left by itself.
    this._live?.leave(session);
    // Requests of this session are not repeated: on a later line it is not joined.
    const error = new TaximeterError('closed', 'The session was left.');
    session._leave(error);
    if (this.state !== 'live') for (const entry of this._requests.of(session)) entry.reject(error);
  }
}
