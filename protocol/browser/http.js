/**
 * Requests over HTTP beside the connection.
 */

import { addressOf } from './line.js';

/** Makes a request below `/v1/`, as the user of a token: by default that of the last `welcome`. */
export function fetchAs(meter, path, init, token = meter._lastToken) {
  const url = new URL(path, addressOf(meter._options.url, 'http'));
  const headers = { Authorization: `Bearer ${token}` };
  return fetch(url, { ...init, headers });
}
