/**
 * What may go wrong between a browser and Taximeter, as errors for a program.
 */

/** Why a close code that forbids coming back does so, as an error code of the protocol. */
const FINAL_CLOSES = new Map([
  [1009, ['bad_message', 'A message was over 16 KiB.']],
  [4500, ['unauthenticated', 'The token was refused.']],
  [4501, ['unauthenticated', 'No token arrived in time.']],
  [4502, ['bad_message', 'The server could not follow the conversation.']],
  [4503, ['rate_limited', 'There are too many connections.']],
]);

/** Whether a client comes back after this close code (the table in PROTOCOL, section 1). */
export function comesBackAfter(code) {
  return [1001, 1006, 1011, 1012].includes(code) || (code >= 4000 && code <= 4499);
}

/**
 * What went wrong, for a program: `code` is one of the protocol's error codes, or `timeout`
 * (no answer in time), `disconnected` (the line was lost for good) or `closed` (by us).
 * `retryable` says whether the same request may succeed later.
 */
export class TaximeterError extends Error {
  constructor(code, message, { retryable = false, ...details } = {}) {
    super(message, { cause: details.cause });
    this.name = 'TaximeterError';
    this.code = code;
    this.retryable = retryable;
    this.limit = details.limit ?? null;
    this.sessionId = details.sessionId ?? null;
    this.closeCode = details.closeCode ?? null;
  }
}

/** The error that a close code stands for which forbids coming back. */
export function errorOfClose(code, reason) {
  const [kind, text] = FINAL_CLOSES.get(code) ?? ['disconnected', 'The server hung up.'];
  return new TaximeterError(kind, reason || text, { closeCode: code });
}
