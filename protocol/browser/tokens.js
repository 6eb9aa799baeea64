/**
 * Tokens: asked for, and in good time.
 */

import { TaximeterError } from './errors.js';

/** Timers of a hidden page run once a minute, and the renewal takes a moment. */
const LEAD_LEAST_MS = 75_000;
const LEAD_MOST_MS = 120_000;

/**
 * When to renew a token that lives for `lifeMs` from now: when a fifth of that is left, at
 * most two minutes and at least 75 s, or half of a life that is shorter.
 */
export function renewalDelayMs(lifeMs) {
  const leadMs = Math.max(LEAD_LEAST_MS, Math.min(LEAD_MOST_MS, lifeMs / 5));
  return lifeMs - Math.min(lifeMs / 2, leadMs);
}

/**
 * The token, or what the function gives. Throws a TaximeterError: that of the function, or
 * one that says to try again; so it does when no answer comes in time.
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
    throw new TaximeterError('unauthenticated', 'No token could be had.', details);
  } finally {
    platform.clearTimeout(timer);
  }
}
