/**
 * The errors of the browser client.
 */

/** The error code of the protocol for a close code. */
const FINAL_CLOSES = {
  4002: 'unauthenticated',
  4500: 'unauthenticated',
  4501: 'unauthenticated',
  4502: 'bad_message',
  4503: 'rate_limited',
};

/**
 * Whether a client reconnects after this close code.
 *
 * Only the server's own codes from 4500 to 4999 forbid that, because proxies close with codes
 * of their own.
 */
export function comesBackAfter(code) {
  return code < 4500 || code > 4999;
}

/**
 * An error of the server or of the connection.
 *
 * `code` is one of the protocol's error codes, or one of the client's own:
 * - `timeout`: no answer came in time;
 * - `unreachable`: several attempts in a row had no `welcome`; the attempts go on;
 * - `disconnected`: the connection was lost;
 * - `offline`: there is no connection, and the client makes none;
 * - `closed`: `close()` was called, or the session was left.
 *
 * `retryable` says whether the same request may succeed later, and `retryAfterMs` after how
 * long, where the server has said so.
 */
export class TaximeterError extends Error {
  constructor(code, message, { retryable = false, ...details } = {}) {
    super(message, { cause: details.cause });
    this.name = 'TaximeterError';
    this.code = code;
    this.retryable = retryable;
    this.retryAfterMs = details.retryAfterMs ?? null;
    this.limit = details.limit ?? null;
    this.sessionId = details.sessionId ?? null;
    this.closeCode = details.closeCode ?? null;
  }
}

/** Thrown by a token function: the login is over, and no further attempt is of use. */
export class Unauthorized extends TaximeterError {
  constructor(message = 'The login is over.') {
    super('unauthenticated', message);
  }
}

/**
 * The error of a line that was closed.
 *
 * Its text is the server's error for our token where there is one, else the reason of the
 * close. The server always gives a reason; a proxy may give none.
 */
export function errorOfClose(closeCode, reason, retryable, refusal) {
  const code = refusal?.code ?? FINAL_CLOSES[closeCode] ?? 'disconnected';
  const text = `The connection was closed with the code ${closeCode}.`;
  const message = refusal?.message || reason || text;
  return new TaximeterError(code, message, { retryable, closeCode });
}
