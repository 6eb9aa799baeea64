/**
 * Types of tabs.js: many tabs, one connection.
 */

import type { SocketClass } from './taximeter.js';

/**
 * Makes a WebSocket, or what stands in for it, one for all tabs of a user.
 *
 * Pass it as the option `tabs`. Tabs share a connection if they connect to the same address, with
 * tokens of the same claims apart from `exp`, `iat`, `nbf` and `jti`. Where the browser has no
 * Web Locks or no BroadcastChannel, as on a page without HTTPS, each tab has a connection of its
 * own.
 */
export declare function tabs(WebSocket: SocketClass, token: string): SocketClass;
