/**
 * Requests over HTTP beside the connection.
 */

import { addressOf } from './line.js';

/** Makes a request below `/v1/`, as the user of the meter's last `welcome`. */
export function fetchAs(meter, path, init) {
  const url = new URL(path, addressOf(meter._options.url, 'http'));
  const headers = { Authorization: `Bearer ${meter._lastToken}` };
  return fetch(url, { ...init, headers });
}
