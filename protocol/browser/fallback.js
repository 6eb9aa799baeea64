/**
 * A connection where no WebSocket gets through: server-sent events, and requests by POST.
 *
 * The core imports this module after two attempts without a `welcome`, and gives it the place
 * of the WebSocket. An app that must not load code later passes it:
 *
 *     import { StreamSocket } from 'taximeter/fallback';
 *     const meter = new Taximeter({ token, fallback: StreamSocket });
 */

/** The pause between two attempts to get a WebSocket through. */
const UPGRADE_AFTER_MS = 60_000;
/** The pause after a request that the server refuses as too early. */
const BUSY_MS = 1_000;
/** Bounds of one request: the server's bounds are 16 KiB, and 64 messages. */
const BODY_MOST_BYTES = 8_192;
const MESSAGES_MOST = 16;

/** The close code for the answer to a request that opens no stream. */
const CLOSES = { 401: 4002, 403: 4500, 429: 1013, 503: 1013 };

/** Calls back with each event of a stream: its name, or `message`, and its data. */
async function readEvents(body, received) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + decoder.decode(value, { stream: true })).split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const event = { event: 'message', data: '{}' };
      for (const line of block.split('\n')) {
        const [, field, rest] = /^(\w+): ?(.*)$/.exec(line) ?? [];
        if (field) event[field] = rest;
      }
      received(event.event, JSON.parse(event.data));
    }
  }
}

/**
 * An event stream with the interface of a WebSocket, as far as the core uses it.
 *
 * The first message must be `auth`: its token opens the stream. Messages are sent in order,
 * several in one request where they wait for each other. Each `ping` event is answered at once,
 * which is the client's proof of life. From time to time a WebSocket is tried; when one opens,
 * `onmessage` gets a `reconnect`, upon which the core connects with a WebSocket.
 */
export class StreamSocket {
  readyState = 1;
  bufferedAmount = 0;
  onopen = null;
  onmessage = null;
  onclose = null;
  #url;
  #protocol;
  #platform;
  #aborting = new AbortController();
  #token;
  #renewal; // the message with the newest token
  #requestsUrl = null; // once the stream is open
  #waiting = []; // texts of messages
  #isPosting = false;
  #timer;
  #probe = null; // the WebSocket that is tried
  #joined = new Set(); // ids of sessions

  constructor(url, protocol, platform) {
    this.#url = new URL(url);
    this.#url.protocol = this.#url.protocol.replace('ws', 'http');
    this.#protocol = protocol;
    this.#platform = platform;
    queueMicrotask(() => this.onopen?.());
  }

  send(text) {
    const message = JSON.parse(text);
    if (message.token) this.#renewal = message;
    if (message.type === 'auth') {
      this.#token = message.token;
      this.#open(message.id);
      return;
    }
    if (message.type === 'start') this.#joined.add(message.session_id);
    if (message.type === 'leave') this.#joined.delete(message.session_id);
    this.#waiting.push(text);
    this.bufferedAmount += text.length;
    this.#flush();
  }

  /**
   * Ends the stream; `onclose` is not called.
   *
   * The end of a stream is a broken connection to the server. So a client that closes with 1000
   * takes leave of its sessions, as the close of a WebSocket does.
   */
  close(code) {
    if (this.readyState !== 1) return;
    this.readyState = 3;
    this.#platform.clearTimeout(this.#timer);
    this.#hangUp();
    const leaves = [...this.#joined].map((id) => ({ type: 'leave', session_id: id }));
    while (code === 1000 && this.#requestsUrl && leaves.length) {
      const body = JSON.stringify(leaves.splice(0, MESSAGES_MOST));
      this.#post(body, { keepalive: true, signal: null }).catch(() => {});
    }
    this.#aborting.abort();
  }

  /** Opens the stream, and reads it until its end. */
  async #open(id) {
    try {
      const response = await this.#fetch(new URL('stream', this.#url), {
        headers: { Accept: 'text/event-stream' },
        cache: 'no-store',
      });
      if (!response.ok) return await this.#refuse(response, id);
      await readEvents(response.body, (name, data) => this.#receive(name, data, id));
      this.#lose(1006, 'The stream has ended.');
    } catch (error) {
      this.#lose(1006, error.message);
    }
    return undefined;
  }

  #receive(name, data, id) {
    if (this.readyState !== 1) return;
    if (name === 'open') {
      const path = `stream/${encodeURIComponent(data.stream_id)}`;
      this.#requestsUrl = new URL(path, this.#url);
      this.#flush();
    } else if (name === 'ping') {
      this.#post('{"type":"pong"}').catch(() => {}); // the next ping, or the watchdog, shows it
    } else if (name === 'close') this.#lose(data.code, data.reason);
    else if (name === 'message') {
      // The token of the request was the stream's `auth`, so the welcome answers it.
      const isFirst = data.type === 'welcome' && data.id === undefined;
      if (isFirst) this.#armUpgrade();
      // A token that the server has not taken may be another user's.
      else if (data.type === 'welcome' && data.id === this.#renewal.id) {
        this.#token = this.#renewal.token;
      }
      this.#tell(isFirst ? { ...data, id } : data);
    }
  }

  #tell(message) {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  /** Reports what the server has answered instead of a stream. */
  async #refuse(response, id) {
    const { code, detail, title } = await response.json().catch(() => ({}));
    const reason = detail ?? title ?? '';
    const retryable = response.status === 429 || response.status >= 500;
    if (code) this.#tell({ type: 'error', id, code, message: reason, retryable });
    this.#lose(CLOSES[response.status] ?? 1006, reason);
  }

  #lose(code, reason) {
    if (this.readyState !== 1) return;
    this.close();
    this.onclose?.({ code, reason });
  }

  /** Sends what waits, one request after another: two at once could overtake each other. */
  async #flush() {
    if (this.#isPosting || !this.#requestsUrl || !this.#waiting.length) return;
    this.#isPosting = true;
    let [many, size] = [0, 0];
    do size += this.#waiting[many++].length;
    while (many < Math.min(this.#waiting.length, MESSAGES_MOST) && size < BODY_MOST_BYTES);
    try {
      const { status } = await this.#post(`[${this.#waiting.slice(0, many)}]`);
      this.#isPosting = false;
      if (status === 429) {
        this.#platform.setTimeout(() => this.#flush(), BUSY_MS);
      } else if (status >= 400) this.#lose(1006, `A request was answered ${status}.`);
      else {
        this.#waiting.splice(0, many);
        this.bufferedAmount -= size;
        this.#flush();
      }
    } catch (error) {
      this.#lose(1006, error.message);
    }
  }

  #post(body, options) {
    const headers = { 'Content-Type': 'application/json' };
    return this.#fetch(this.#requestsUrl, { method: 'POST', body, headers, ...options });
  }

  #fetch(url, { headers, ...options }) {
    const { signal } = this.#aborting;
    const authorization = { Authorization: `Bearer ${this.#token}` };
    return fetch(url, { signal, ...options, headers: { ...headers, ...authorization } });
  }

  /** Tries a WebSocket after a while; when it opens, the core moves to another. */
  #armUpgrade() {
    this.#timer = this.#platform.setTimeout(() => {
      this.#hangUp(); // the last one may never have got an answer
      const { href } = this.#url;
      const socket = new this.#platform.WebSocket(href.replace('http', 'ws'), this.#protocol);
      this.#probe = socket;
      socket.onopen = () => {
        this.#hangUp();
        if (this.readyState === 1) this.#tell({ type: 'reconnect', after_ms: 0, by: 'stream' });
      };
      this.#armUpgrade();
    }, UPGRADE_AFTER_MS);
  }

  /** Closes the WebSocket that was tried: nothing else would. */
  #hangUp() {
    if (this.#probe) this.#probe.onopen = null;
    this.#probe?.close(1000);
    this.#probe = null;
  }
}
