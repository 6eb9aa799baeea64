/**
 * One line to the server for the tabs of a user: which tab hears what, and which has asked.
 *
 * Nothing here connects, waits or listens; tabs.js does.
 */

/** The server's bound; it closes the connection at each larger message. */
const MESSAGE_MOST_BYTES = 16_384;
/** The most requests that wait for the server; a tab repeats one that is dropped. */
const ASKED_MOST = 256;
/** The most requests that wait for the start of one session. */
const WAITING_MOST = 128;
/** The pace that the server most likely gives to a start without `tick_ms`. */
const TICK_MS = 1_000;

const sizeOf = (message) => new TextEncoder().encode(JSON.stringify(message)).length;
const paceOf = ({ tick_ms: tickMs }) => tickMs ?? TICK_MS;

/** The members of a session that keep it alive; the others only watch. */
const startsOf = (session) =>
  [...(session?.members.values() ?? [])].filter(({ message }) => message.type === 'start');

/** The tabs that hear a session: they have its snapshot. */
const hearersOf = ({ members }) =>
  [...members].filter(([, { isJoined }]) => isJoined).map(([tab]) => tab);

/**
 * The tabs on one line, their requests, and the sessions of each.
 *
 * `send(message)` is to send a message to the server, `deliver(tabs, message)` to give one to
 * each of these tabs. A tab is any key.
 *
 * Requests get ids of the line's own. The server has each session once, however many tabs
 * start it: the first start goes as it is, those of further tabs ask for a snapshot only, and
 * `leave` goes when the last tab leaves.
 */
export class Multiplexer {
  #send;
  #deliver;
  #tabs = new Set();
  #asked = new Map(); // by the line's id: { tab, message, instead }
  #sessions = new Map(); // by session id: { members, opening, waiting }
  #lastId = 0;

  constructor({ send, deliver }) {
    this.#send = send;
    this.#deliver = deliver;
  }

  get tabs() {
    return [...this.#tabs];
  }

  has(tab) {
    return this.#tabs.has(tab);
  }

  add(tab) {
    this.#tabs.add(tab);
  }

  /** Removes a tab, which leaves its sessions. */
  remove(tab) {
    this.#tabs.delete(tab);
    for (const [sessionId, { members }] of [...this.#sessions]) {
      if (members.has(tab)) this.#leave(tab, sessionId);
    }
  }

  /** Whether some tab has started this session, or joined it. */
  isStarted(sessionId) {
    return startsOf(this.#sessions.get(sessionId)).length > 0;
  }

  /** Takes a request of a tab. */
  request(tab, message) {
    const { type, session_id: sessionId } = message;
    const session = this.#sessions.get(sessionId);
    const member = session?.members.get(tab);
    if (sizeOf({ ...message, id: this.#lastId + 1 }) > MESSAGE_MOST_BYTES) {
      this.#refuse(tab, message, 'bad_message', 'the message is over 16 KiB');
    } else if (type === 'start' || type === 'watch') this.#join(tab, message);
    else if (sessionId === undefined) this.#ask(tab, message);
    else if (!member) {
      this.#refuse(tab, message, 'unknown_session', 'this socket has no such session');
    } else if (type === 'leave') this.#leave(tab, sessionId);
    else if (member.message.type === 'watch') {
      this.#refuse(tab, message, 'forbidden', 'this socket only watches the session');
    } else if (isWaiting(session, tab)) wait(session, tab, message);
    else this.#ask(tab, message);
  }

  /** Takes a message of the server. */
  receive({ id, ...message }) {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    const sessionId = asked?.message.session_id ?? message.session_id;
    const session = this.#sessions.get(sessionId);
    if (asked) this.#answer(asked, message, session);
    else if (session) this.#tell(hearersOf(session), message);
    else if (!sessionId || message.type === 'error') this.#tell(this.tabs, message);
    const isOver = message.type === 'stopped' || message.state === 'ended';
    if (isOver && this.#sessions.get(sessionId) === session) this.#sessions.delete(sessionId);
  }

  /** Gives an answer to the tab that has asked, and what is news to the others. */
  #answer(asked, message, session) {
    const { tab, message: request, instead } = asked;
    if (instead && message.code === 'unknown_session') return this.#ask(tab, instead);
    const isJoin = request.type === 'start' || request.type === 'watch';
    const isError = message.type === 'error';
    const member = session?.members.get(tab);
    if (isJoin && member && !isError) member.isJoined = true;
    if (isJoin && member && isError && !member.isJoined) session.members.delete(tab);
    if (this.#tabs.has(tab)) this.#tell([tab], { ...message, id: (instead ?? request).id });
    if (session?.opening === asked) this.#opened(session, request.session_id);
    // The server answers the socket that has asked, and tells it nothing else of the change.
    const isPrivate = isJoin || isError || ['auth', 'ping'].includes(request.type);
    const hearers = isPrivate ? [] : session ? hearersOf(session) : this.tabs;
    return this.#tell(hearers.filter((other) => other !== tab), message);
  }

  /** Lets the requests go on that waited for a start. */
  #opened(session, sessionId) {
    session.opening = null;
    if (!session.members.size) this.#sessions.delete(sessionId);
    for (const [tab, message] of session.waiting.splice(0)) {
      if (this.#tabs.has(tab)) this.request(tab, message);
    }
  }

  #join(tab, message) {
    const { session_id: sessionId, type, last_seq: lastSeq } = message;
    const found = this.#sessions.get(sessionId);
    const session = found ?? { members: new Map(), opening: null, waiting: [] };
    this.#sessions.set(sessionId, session);
    const others = startsOf(session).filter((member) => member.isJoined);
    const isJoined = session.members.get(tab)?.isJoined ?? false;
    session.members.set(tab, { message, isJoined });
    if (isWaiting(session, tab)) wait(session, tab, message);
    else if (type === 'watch') this.#ask(tab, message);
    else if (!others.length) session.opening = this.#ask(tab, message);
    else {
      const isFastest = others.every((other) => paceOf(message) < paceOf(other.message));
      const [fastest] = startsOf(session).sort((a, b) => paceOf(a.message) - paceOf(b.message));
      // Only the server knows which notices a tab has missed that comes back.
      if (isFastest || lastSeq !== undefined) {
        this.#ask(tab, { ...message, tick_ms: fastest.message.tick_ms });
      } else this.#ask(tab, { type: 'watch', session_id: sessionId }, message);
    }
  }

  #leave(tab, sessionId) {
    const session = this.#sessions.get(sessionId);
    const wasStarted = this.isStarted(sessionId);
    session.members.delete(tab);
    session.waiting = session.waiting.filter(([other]) => other !== tab);
    const isWatched = session.members.size > 0;
    if (this.isStarted(sessionId) || (isWatched && !wasStarted)) return;
    this.#send({ type: 'leave', session_id: sessionId });
    if (!isWatched) this.#sessions.delete(sessionId);
    // The server lets the socket go altogether, so those that watch watch anew.
    for (const [other, { message }] of session.members) {
      this.#ask(other, { ...message, id: undefined });
    }
  }

  /** Sends a request, under an id of the line's own, `instead` of the tab's own request. */
  #ask(tab, message, instead) {
    const id = ++this.#lastId;
    const asked = { tab, message, instead };
    this.#asked.set(id, asked);
    if (this.#asked.size > ASKED_MOST) this.#asked.delete(this.#asked.keys().next().value);
    this.#send({ ...message, id });
    return asked;
  }

  #refuse(tab, { id, session_id }, code, text) {
    this.#tell([tab], { type: 'error', id, session_id, code, message: text, retryable: false });
  }

  #tell(tabs, message) {
    if (tabs.length) this.#deliver(tabs, message);
  }
}

/** Whether a tab's requests wait for the start that another tab has sent. */
function isWaiting({ opening }, tab) {
  return opening !== null && opening.tab !== tab;
}

function wait({ waiting }, tab, message) {
  if (waiting.length < WAITING_MOST) waiting.push([tab, message]);
}
