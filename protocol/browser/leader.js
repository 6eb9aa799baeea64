/**
 * The tab that has the connection, for itself and for the tabs that follow it.
 */

import { expiryOf } from './claims.js';
import { comesBackAfter } from './errors.js';
import { Multiplexer } from './multiplexer.js';

/** The most tabs on one connection; further ones have a connection of their own. */
const TABS_MOST = 32;
/** With more unsent bytes than this, the line is full. */
const UNSENT_MOST_BYTES = 65_536;
/** Two tokens that expire within this are as good as each other. */
const SAME_MS = 1_000;

const CLOSED_EXPIRED = 4002;
/** For tabs that come back with tokens of their own. */
export const CLOSED_RETRY = 1012;

/** Tells a tab to connect anew; the core closes the present line when the new one has joined. */
export const RECONNECT = { type: 'reconnect', after_ms: 0 };

/** Starts to measure; the monotonic clock of some browsers stands still during a sleep. */
function stopwatch({ now }) {
  const [at, wallAt] = [now(), Date.now()];
  return () => Math.max(now() - at, Date.now() - wallAt);
}

/**
 * A connection, and the tabs on it: `own`, which made it, and its followers.
 *
 * The last argument has `platform`, and what the leader needs of its tab: `post(tabs, kind,
 * rest)` sends to followers, `opened()` says that the connection is open, `tell(message)` is the
 * server's message to the own tab, `outlive(tab, callback)` calls back when a tab is gone, `drain(message)` when the server asks
 * to reconnect, `lost(code, reason)` when the connection is lost, and `ended()` when the leader
 * has closed it.
 */
export class Leader {
  isRetired = false;
  #own;
  #tab;
  #mux;
  #followers = new Map(); // by id: the `auth` of each, and when its token expires; null: not yet
  #socket = null;
  #isStream = false;
  #isOpened = false;
  #isDeserted = false; // whether the own tab has closed
  #welcome = null; // the last one, with the newest balance
  #age; // the milliseconds since that welcome
  #silence; // the milliseconds since the last message
  #usage = null; // the last one
  #refreshing = null; // the tab whose new token the server checks
  #renewedUntil = null; // the expiry of that token

  constructor(own, tab) {
    this.#own = own;
    this.#tab = tab;
    this.#silence = stopwatch(tab.platform);
    this.#mux = new Multiplexer({
      send: (message) => this.#send(message),
      deliver: (tabs, message) => this.#deliver(tabs, message),
    });
    this.#mux.add(own);
  }

  get hasFollowers() {
    return this.#followers.size > 0;
  }

  /** Takes the new socket; `isStream`: it is no WebSocket, because none gets through. */
  open(socket, isStream) {
    this.#socket = socket;
    this.#isStream = isStream;
    socket.onopen = () => {
      this.#isOpened = true;
      this.#tab.opened();
      for (const tab of this.#followers.keys()) this.#answer(tab);
    };
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
  }

  /** Takes a request of a tab. */
  request(tab, message) {
    if (message.type === 'auth' && tab !== this.#own) {
      this.#followers.set(tab, message);
      return this.#welcome && this.#greet(tab, message);
    }
    if (!this.#isServed(tab)) return undefined;
    if (message.type === 'refresh') {
      const lastsUntil = this.#welcome?.expires_at ?? Infinity;
      const expiresAt = expiryOf(message.token);
      // Another tab was faster. An older token would shorten the life of the connection.
      if (expiresAt <= lastsUntil + SAME_MS) {
        return this.#greet(tab, { id: message.id, expiresAt });
      }
      this.#refreshing = tab;
      this.#renewedUntil = expiresAt;
    }
    return this.#mux.request(tab, message);
  }

  /** Hears another tab. */
  hear(from, { kind, message }) {
    if (kind === 'hello' && !this.isRetired) this.#admit(from);
    else if (!this.#followers.has(from)) return;
    else if (kind === 'say') this.request(from, message);
    else if (kind === 'dead' && this.#silence() > 2 * this.#welcome?.ping_ms) {
      // It has asked the server in vain, and our own timers may be late.
      this.#lost(1006, 'The line is dead.');
    }
  }

  /** Stops leading: the followers connect anew, to the next leader. */
  retire(by) {
    this.isRetired = true;
    this.#deliver([...this.#followers.keys()], { ...RECONNECT, by });
  }

  /** Leaves what the followers have, because this tab is about to stand still. */
  desert() {
    for (const tab of [...this.#followers.keys()]) this.#drop(tab);
  }

  /** Closes for the own tab; the connection stays for tabs that are on their way. */
  leave(code) {
    this.#isDeserted = true;
    if (code !== 1000 || !this.hasFollowers) this.close(code);
    else this.#mux.remove(this.#own);
  }

  /** Closes the connection. */
  close(code) {
    this.#mute();
    this.#socket?.close(code);
    this.#tab.ended();
  }

  #mute() {
    this.isRetired = true;
    Object.assign(this.#socket ?? {}, { onopen: null, onmessage: null, onclose: null });
  }

  #admit(tab) {
    if (this.#followers.has(tab)) return this.#answer(tab);
    if (this.#followers.size + 1 >= TABS_MOST) return this.#tab.post([tab], 'full');
    this.#followers.set(tab, null);
    this.#mux.add(tab);
    this.#tab.outlive(tab, () => this.#drop(tab));
    return this.#answer(tab);
  }

  #answer(tab) {
    this.#tab.post([tab], 'here', { isStream: this.#isStream, isOpened: this.#isOpened });
  }

  /** Answers the token of a tab that has the claims of ours, unless it has expired. */
  #greet(tab, { id, expiresAt }) {
    this.#renew(tab, expiresAt);
    this.#deliver([tab], { ...this.#welcome, server_time_at: this.#serverTimeAt(), id });
    if (this.#usage) this.#deliver([tab], this.#usage);
  }

  #serverTimeAt() {
    return this.#welcome.server_time_at + Math.round(this.#age());
  }

  #renew(tab, expiresAt) {
    const auth = this.#followers.get(tab);
    if (auth) this.#followers.set(tab, { ...auth, expiresAt });
  }

  /** Whether the tab's own token lasts; lets a follower go whose token has expired. */
  #isServed(tab) {
    const auth = this.#followers.get(tab);
    if (tab === this.#own || !auth || !this.#welcome) return true;
    if (auth.expiresAt > this.#serverTimeAt()) return true;
    const reason = 'the token has expired';
    this.#tab.post([tab], 'lost', { code: CLOSED_EXPIRED, reason });
    this.#drop(tab);
    return false;
  }

  #drop(tab) {
    this.#followers.delete(tab);
    if (this.#isDeserted && !this.hasFollowers) this.close(1000);
    else this.#mux.remove(tab);
  }

  #send(message) {
    const socket = this.#socket;
    if (socket?.readyState !== 1) return;
    // A request that is dropped is repeated; `leave` is not.
    const isFull = socket.bufferedAmount > UNSENT_MOST_BYTES;
    if (!isFull || message.type === 'leave') socket.send(JSON.stringify(message));
  }

  #deliver(tabs, message) {
    const others = tabs.filter((tab) => tab !== this.#own);
    const served = others.filter((tab) => this.#isServed(tab));
    // Each renews its own token in time.
    if (message.type === 'welcome') {
      for (const tab of served) this.#tab.post([tab], 'tell', { message: this.#cut(tab, message) });
    } else if (served.length) this.#tab.post(served, 'tell', { message });
    if (others.length < tabs.length) this.#tab.tell(message);
  }

  /** The `welcome` of a tab, with the expiry of its own token if that is earlier. */
  #cut(tab, message) {
    const { expiresAt = Infinity } = this.#followers.get(tab) ?? {};
    const lastsUntil = Math.min(message.expires_at ?? Infinity, expiresAt);
    return Number.isFinite(lastsUntil) ? { ...message, expires_at: lastsUntil } : message;
  }

  #receive(message) {
    this.#silence = stopwatch(this.#tab.platform);
    const { type, id: _, ...rest } = message;
    if (type === 'reconnect') return this.#tab.drain(message);
    const isFirst = type === 'welcome' && !this.#welcome;
    if (type === 'welcome') {
      this.#welcome = { type, ...rest };
      this.#age = stopwatch(this.#tab.platform);
      if (this.#refreshing) this.#renew(this.#refreshing, this.#renewedUntil);
      this.#refreshing = null;
    } else if (type === 'usage') this.#usage = message;
    else this.#note(message);
    this.#mux.receive(message);
    if (!isFirst) return undefined;
    for (const [tab, auth] of [...this.#followers]) if (auth) this.#greet(tab, auth);
    return undefined;
  }

  /** Keeps the newest balance, for tabs that open later. */
  #note({ type, credits, account_id: accountId, session_id: sessionId }) {
    if (!credits || !this.#welcome) return;
    const isAccount = type === 'credit' && accountId === this.#welcome.account_id;
    if (isAccount || this.#mux.isStarted(sessionId)) this.#welcome.credits = credits;
  }

  /** Tells every tab of the loss; only the tab whose token is refused may have to give up. */
  #lost(code, reason) {
    this.#mute();
    this.#socket.close(); // it may be that only we take it for dead
    const isAboutToken = !comesBackAfter(code) || code === CLOSED_EXPIRED;
    const guilty = this.#refreshing ?? this.#own;
    const codeFor = (tab) => (isAboutToken && tab !== guilty ? CLOSED_RETRY : code);
    for (const tab of this.#followers.keys()) {
      this.#tab.post([tab], 'lost', { code: codeFor(tab), reason });
    }
    this.#tab.lost(codeFor(this.#own), reason);
  }
}
