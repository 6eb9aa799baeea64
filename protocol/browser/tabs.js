/**
 * Many tabs, one connection: the tabs of a user share one socket to the server.
 *
 *     import { Taximeter } from 'taximeter';
 *     import { tabs } from 'taximeter/tabs';
 *     const meter = new Taximeter({ token, tabs });
 *
 * One tab leads: it has the socket, and passes messages on. A Web Lock elects it, and the tabs
 * talk over a BroadcastChannel. Where the browser has not both, as on a page without HTTPS, each
 * tab has a socket of its own.
 */

import { expiryOf, groupOf } from './claims.js';
import { CLOSED_RETRY, Leader, RECONNECT } from './leader.js';
import { Timers } from './timers.js';

/** A leader that does not answer within this is replaced. */
const ANSWER_MS = 1_000;
/** After as much silence a tab asks its leader, and after as much again it leaves it. */
const SILENCE_MS = 2_500;
/** How long a closed tab keeps its connection for tabs that move to the next leader. */
const LINGER_MS = 5_000;

/** Tells the core that no attempt is of use: the browser forbids the socket. */
const CLOSED_FORBIDDEN = 4504;

/** Whether the last leader had an event stream, because no WebSocket gets through. */
let isBlocked = false;

/**
 * Makes a WebSocket, or what stands in for it, one for all tabs: the option `tabs`.
 *
 * `token` is the one with which the core is about to connect; it says with whom to share.
 */
export function tabs(WebSocket, token) {
  return class extends TabSocket {
    constructor(url, protocol, platform) {
      super(WebSocket, token, url, protocol, platform);
    }
  };
}

/**
 * A tab's end of the shared connection, with the interface of a WebSocket.
 *
 * It leads, or follows a leader. When the leader changes, `onmessage` gets a `reconnect`, upon
 * which the core connects anew, without a pause.
 */
class TabSocket {
  readyState = 1;
  bufferedAmount = 0; // a leader drops what the core repeats
  onopen = null;
  onmessage = null;
  #onclose = null;
  #WebSocket;
  #address;
  #platform;
  #timers; // `leader`, `drain`, `linger`
  #token;
  #id = '';
  #group = null; // the name of the leader's lock, and of the channel
  #channel = null;
  #ending = new AbortController(); // ends what we wait for and listen to
  #electing = new AbortController(); // ends the wait for the leader's lock
  #dies = () => {}; // lets go of the lock by which others know that we live
  #resigns = () => {}; // lets go of the leader's lock
  #leads = null; // the Leader, if this tab is it
  #leader = null; // the id of the tab that we follow
  #isOpened = false;
  #isWelcome = false; // whether the core has its `welcome`
  #isHeard = false; // whether we heard the leader since we looked last
  #isAsked = false; // whether we have asked a silent leader for an answer

  constructor(WebSocket, token, ...address) {
    this.#WebSocket = WebSocket;
    this.#token = token;
    this.#address = address;
    this.#platform = address[2];
    this.#timers = new Timers(this.#platform);
    queueMicrotask(() => this.#begin());
  }

  get onclose() {
    return this.#onclose;
  }

  /** The core stops to listen before it closes; from then on another tab leads. */
  set onclose(listener) {
    this.#onclose = listener;
    if (!listener) this.#stepDown();
  }

  send(text) {
    const message = JSON.parse(text);
    const { type, id, token } = message;
    const isOther = type === 'refresh' && this.#group && this.#groupOf(token) !== this.#group;
    if (isOther) this.#move(); // what a token may do holds for its whole connection
    else if (this.#leads) this.#leads.request(this.#id, message);
    else if (type === 'auth') {
      this.#post([this.#leader], 'say', { message: { type, id, expiresAt: expiryOf(token) } });
    } else this.#post([this.#leader], 'say', { message });
  }

  /** Ends this tab's part; `onclose` is not called. */
  close(code) {
    if (this.readyState !== 1) return;
    this.#stepDown();
    this.readyState = 3;
    if (this.#leads) {
      this.#timers.arm('linger', LINGER_MS, () => this.#leads.close(1000));
      this.#leads.leave(code);
    } else {
      if (code !== 1000) this.#post([this.#leader], 'dead');
      this.#end();
    }
  }

  // Election

  async #begin() {
    this.#group = this.#groupOf(this.#token);
    if (!this.#group) return this.#stayAlone();
    try {
      this.#id = crypto.randomUUID();
      await this.#live();
      this.#channel = new BroadcastChannel(this.#group);
    } catch {
      return this.#stayAlone(); // without locks or channels
    }
    if (this.readyState !== 1) return this.#end();
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#listen();
    this.#elect({ signal: this.#electing.signal });
    return this.#greet();
  }

  /** Has a connection of its own. */
  #stayAlone() {
    this.#group = null;
    this.#electing.abort();
    this.#dies();
    this.#channel?.close();
    this.#channel = null;
    if (this.readyState === 1 && this.#onclose) this.#lead();
  }

  #groupOf(token) {
    return groupOf(this.#address[0], token);
  }

  /** Takes the lock by which others know that this tab lives. */
  #live() {
    return new Promise((resolve, reject) => {
      const hold = () => {
        resolve();
        return new Promise((die) => {
          this.#dies = die;
        });
      };
      const { signal } = this.#ending;
      navigator.locks.request(`${this.#group} ${this.#id}`, { signal }, hold).catch(reject);
    });
  }

  #listen() {
    const { signal } = this.#ending;
    globalThis.addEventListener?.('pagehide', () => this.#hide(), { signal });
    globalThis.document?.addEventListener('freeze', () => this.#freeze(), { signal });
    globalThis.document?.addEventListener('resume', () => this.#thaw(), { signal });
  }

  #elect(options) {
    navigator.locks
      .request(this.#group, options, () => this.#elected())
      .catch(() => {
        // Another tab has taken the lock, because this one did not answer.
        if (options.signal?.aborted || !this.#leads || this.#leads.isRetired) return;
        this.#stepDown();
        this.#move();
      });
  }

  /** Leads, as long as the result is pending. */
  #elected() {
    if (!this.#onclose || this.readyState !== 1) return undefined;
    if (this.#leader) {
      this.#move(); // the leader is gone; the tabs elect anew
      return undefined;
    }
    const term = new Promise((resign) => {
      this.#resigns = resign;
    });
    this.#lead();
    return term;
  }

  async #lead() {
    this.#timers.disarm('leader');
    this.#leads = new Leader(this.#id, this.#means());
    this.#post(null, 'lead');
    const Way = await this.#way();
    if (this.readyState !== 1 || !this.#onclose) return;
    try {
      const isStream = Way !== this.#platform.WebSocket;
      this.#leads.open(new Way(...this.#address), isStream);
    } catch (error) {
      this.#lose(error.name === 'SecurityError' ? CLOSED_FORBIDDEN : 1006, error.message);
    }
  }

  #means() {
    const { signal } = this.#ending;
    return {
      platform: this.#platform,
      post: (to, kind, rest) => this.#post(to, kind, rest),
      opened: () => this.onopen?.(),
      tell: (message) => this.#tell(message),
      outlive: (tab, callback) => {
        const options = { mode: 'shared', signal };
        navigator.locks.request(`${this.#group} ${tab}`, options, callback).catch(() => {});
      },
      drain: ({ after_ms: afterMs, by }) => {
        this.#timers.arm('drain', this.#platform.random() * afterMs, () => {
          this.#stepDown(by);
          this.#move(by);
        });
      },
      lost: (code, reason) => this.#lose(code, reason),
      ended: () => this.#end(),
    };
  }

  /** What to connect with: where the last leader had a stream, a WebSocket would fail again. */
  async #way() {
    const isFirst = this.#WebSocket === this.#platform.WebSocket;
    if (!isBlocked || !isFirst) return this.#WebSocket;
    isBlocked = false; // if this attempt fails, the core decides about the next
    const found = await import('./fallback.js').catch(() => null);
    return found?.StreamSocket ?? this.#WebSocket;
  }

  // Following

  /** Asks for the leader; one that does not answer stands still, and this tab takes its place. */
  #greet() {
    this.#post(null, 'hello');
    const answerMs = ANSWER_MS * (1 + this.#platform.random() / 2); // not all tabs at once
    this.#timers.arm('leader', answerMs, () => {
      this.#electing.abort();
      this.#elect({ steal: true });
    });
  }

  #hear({ from, to, kind, ...rest }) {
    if (to && !to.includes(this.#id)) return;
    if (this.#leads) this.#leads.hear(from, { kind, ...rest });
    else if (!this.#onclose) return; // another connection has taken the place of this one
    else if (kind === 'lead') {
      if (this.#leader) this.#move();
      else this.#greet();
    } else if (kind === 'full') this.#stayAlone();
    else if (kind === 'here' && !this.#leader) this.#follow(from, rest);
    else if (from === this.#leader) this.#obey(kind, rest);
  }

  #follow(leader, rest) {
    this.#leader = leader;
    this.#look();
    this.#obey('here', rest);
  }

  #obey(kind, { message, code, reason, isStream, isOpened }) {
    this.#isHeard = true;
    if (kind === 'here') {
      isBlocked = isStream;
      if (isOpened && !this.#isOpened) this.onopen?.();
      this.#isOpened = isOpened;
    }
    if (message?.by) isBlocked = false; // a WebSocket gets through
    if (kind === 'tell') this.#tell(message);
    if (kind === 'lost') this.#lose(code, reason);
  }

  /** Watches the leader, whose page may stand still. */
  #look() {
    if (this.#isAsked && !this.#isHeard) return this.#move();
    this.#isAsked = !this.#isHeard;
    this.#isHeard = false;
    if (this.#isAsked) this.#post([this.#leader], 'hello');
    return this.#timers.arm('leader', SILENCE_MS, () => this.#look());
  }

  #post(to, kind, rest) {
    this.#channel?.postMessage({ from: this.#id, to, kind, ...rest });
  }

  #tell(message) {
    const { type } = message;
    this.#isWelcome ||= type === 'welcome';
    // Before its `welcome` the core has nothing to join, and hears no `reconnect`.
    if (type === 'reconnect' && !this.#isWelcome) this.#lose(CLOSED_RETRY, '');
    else this.onmessage?.({ data: JSON.stringify(message) });
  }

  /** Has the core connect anew, and close this connection when the new one has joined. */
  #move(by) {
    this.#tell({ ...RECONNECT, by });
  }

  // Ends

  /** Makes place for another leader. */
  #stepDown(by) {
    this.#electing.abort();
    this.#timers.disarm('leader', 'drain');
    if (!this.#leads || this.#leads.isRetired) return;
    this.#leads.retire(by);
    this.#resigns();
  }

  #lose(code, reason) {
    const report = this.#onclose;
    if (!report) return this.#end(); // another connection has taken the place of this one
    this.readyState = 3;
    if (this.#leads) this.#leads.close(1000);
    else this.#end();
    return report({ code, reason });
  }

  /** The page is closed, or kept without running: it takes no part any more. */
  #hide() {
    this.#stepDown();
    this.readyState = 3;
    if (this.#leads) this.#leads.close(1000);
    else this.#end();
  }

  /** The page is about to stand still: with followers, it must not lead. */
  #freeze() {
    if (!this.#leads?.hasFollowers) return;
    this.#stepDown();
    this.#leads.desert();
    this.#channel.close();
    this.#channel = null;
  }

  #thaw() {
    if (this.#leads?.isRetired) this.#move();
  }

  #end() {
    this.#timers.clear();
    this.#electing.abort();
    this.#ending.abort();
    this.#resigns();
    this.#dies();
    this.#channel?.close();
    this.#channel = null;
  }
}
