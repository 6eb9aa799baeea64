/**
 * Getting tokens.
 */

import { TaximeterError } from './errors.js';

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
