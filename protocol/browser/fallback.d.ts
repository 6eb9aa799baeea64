/**
 * Types of fallback.js: a connection where no WebSocket gets through.
 */

import type { Platform } from './taximeter.js';

/**
 * An event stream with the interface of a WebSocket, as far as the client uses it.
 *
 * The client imports it by itself after two attempts without a `welcome`. Pass it as the option
 * `fallback` where no code may be loaded later.
 */
export declare class StreamSocket {
  constructor(
    url: string,
    protocol: string,
    platform: Pick<Platform, 'WebSocket' | 'setTimeout' | 'clearTimeout'>,
  );
  readonly readyState: number;
  readonly bufferedAmount: number;
  onopen: (() => void) | null;
  onmessage: ((event: { data: string }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}
