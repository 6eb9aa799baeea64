/**
 * Types of react-records.js: hooks for an estimate, and for past sessions.
 */

import type { Estimate, EstimateOptions, ListOptions, SessionListed } from './records.js';

/** How long may I talk? Asked when the options or the user change, and by `refresh()`. */
export function useEstimate(options: EstimateOptions): {
  /** Null before the first answer, after a failure, and while there is no user. */
  estimate: Estimate | null;
  error: Error | null;
  refresh(): void;
};

/** The user's sessions, past and live, newest first, with their receipts. */
export function useSessions(options?: Omit<ListOptions, 'cursor'>): {
  sessions: SessionListed[] | null;
  hasMore: boolean;
  /** Adds the next page. */
  more(): Promise<void>;
  error: Error | null;
  refresh(): void;
};
