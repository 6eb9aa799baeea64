/**
 * What a token says, for tabs that ask whether their tokens are alike.
 *
 * Nothing here is verified. Only the server knows whether a token is good.
 */

/** Claims that differ between two tokens of one login. */
const CLAIMS_OF_A_TOKEN = ['exp', 'iat', 'nbf', 'jti'];

/** The claims of a token; an empty object if there are none to read. */
export function claimsOf(token) {
  try {
    const part = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(part), (letter) => letter.charCodeAt(0));
    return { ...JSON.parse(new TextDecoder().decode(bytes)) };
  } catch {
    return {};
  }
}

/** When a token expires, in epoch milliseconds; Infinity: never. */
export const expiryOf = (token) => (claimsOf(token).exp ?? Infinity) * 1_000;

/**
 * The name that is the same for all who may share a connection; null: share with none.
 *
 * They connect to the same address, with tokens of the same claims, apart from the times. So
 * two tokens are never alike if one of them may do less.
 */
export function groupOf(url, token) {
  const claims = Object.entries(claimsOf(token));
  const shared = claims.filter(([name]) => !CLAIMS_OF_A_TOKEN.includes(name)).sort();
  return shared.length ? `taximeter.v1 ${url} ${JSON.stringify(shared)}` : null;
}
