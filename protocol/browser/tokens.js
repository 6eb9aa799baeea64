/**
 * Getting tokens, and renewing them in time.
 */

import { TaximeterError } from './errors.js';

/** Above a minute, because hidden pages run timers once a minute. */
const LEAD_LEAST_MS = 75_000;
const LEAD_MOST_MS = 120_000;

/**
 * The delay until a token that lives for `lifeMs` is renewed.
 *
 * The renewal is due when a fifth of that life is left, bounded by 75 s and two minutes. If
 * that is more than half of the life, it is due at half of the life.
 */
export function renewalDelayMs(lifeMs) {
  const leadMs = Math.max(LEAD_LEAST_MS, Math.min(LEAD_MOST_MS, lifeMs / 5));
  return lifeMs - Math.min(lifeMs / 2, leadMs);
}

/**
 * The token, or the result of the function that gives it.
 *
 * Throws a TaximeterError: the function's own, or a retryable one if the function throws
 * another error or does not settle within `timeoutMs`.
 */
export async function freshToken(token, platform, timeoutMs) {
  if (typeof token !== 'function') return token;
  let timer;
  const late = new Promise((_, reject) => {
    const error = new TaximeterError('timeout', 'No token came in time.', { retryable: true });
    timer = platform.setTimeout(() => reject(error), timeoutMs);
  });
  try {
    return await Promise.race([token(), late]);
  } catch (cause) {
    if (cause instanceof TaximeterError) throw cause;
    const details = { retryable: true, cause };
    throw new TaximeterError('unauthenticated', 'The token function failed.', details);
  } finally {
    platform.clearTimeout(timer);
  }
}
