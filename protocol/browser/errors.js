/**
 * What may go wrong between a browser and Taximeter, as errors for a program.
 */

/** Why a close code that forbids coming back does so, as an error code of the protocol. */
const FINAL_CLOSES = {
  4002: 'unauthenticated',
  4500: 'unauthenticated',
  4501: 'unauthenticated',
  4502: 'bad_message',
  4503: 'rate_limited',
};

/**
 * Whether a client comes back after this close code: only the server's own codes from 4500 to
 * 4999 forbid it. Proxies close as they like.
 */
export function comesBackAfter(code) {
  return code < 4500 || code > 4999;
}

/**
 * What went wrong, for a program: `code` is one of the protocol's error codes, or `timeout`
 * (no answer in time), `unreachable` (several attempts in a row had no welcome; the attempts
 * go on), `disconnected` (the line was lost for good), `offline` (there is none) or `closed`
 * (by us). `retryable` says whether the same request may succeed later, and `retryAfterMs`
 * when, where that is known.
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

/**
 * The error of a line that was closed. What the server answered to our token says more than
 * the reason that came with the code, which the server always gives; a proxy may not.
 */
export function errorOfClose(closeCode, reason, retryable, refusal) {
  const code = refusal?.code ?? FINAL_CLOSES[closeCode] ?? 'disconnected';
  const text = `The connection was closed with the code ${closeCode}.`;
  const message = refusal?.message || reason || text;
  return new TaximeterError(code, message, { retryable, closeCode });
}
