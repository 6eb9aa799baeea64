/**
 * Hooks for what an app shows beside a running session: an estimate, and past sessions.
 */

import { useCallback, useEffect, useState } from 'react';
import { useMeter } from './react.js';
import { estimate, listSessions } from './records.js';

const NOTHING = Object.freeze({ value: null, error: null });

/** The answer to a question, asked anew when its text changes; late answers do not count. */
function useAnswer(question, ask) {
  const meter = useMeter();
  const [answer, setAnswer] = useState(NOTHING);
  const [asked, setAsked] = useState(0);
  useEffect(() => {
    let isCurrent = true;
    const take = (next) => isCurrent && setAnswer(next);
    ask(meter, JSON.parse(question)).then(
      (value) => take({ value, error: null }),
      (error) => take({ value: null, error }),
    );
    return () => {
      isCurrent = false;
    };
  }, [meter, question, ask, asked]);
  const refresh = useCallback(() => setAsked((count) => count + 1), []);
  return { ...answer, refresh };
}

/** How long may I talk? `estimate` is null at first; `refresh()` asks again. */
export function useEstimate({ kind, counterpartId, sessionId }) {
  const question = JSON.stringify({ kind, counterpartId, sessionId });
  const { value, error, refresh } = useAnswer(question, estimate);
  return { estimate: value, error, refresh };
}

/**
 * The user's sessions, past and live, newest first; `sessions` is null at first.
 *
 * `more()` adds the next page, where `hasMore`; `refresh()` begins again.
 */
export function useSessions({ kind, counterpartId, from, to, limit } = {}) {
  const meter = useMeter();
  const question = JSON.stringify({ kind, counterpartId, from, to, limit });
  const { value: first, error, refresh } = useAnswer(question, listSessions);
  const [added, setAdded] = useState({ first: null, items: [], next_cursor: null });
  const isFresh = added.first === first;
  const cursor = (isFresh ? added : first)?.next_cursor ?? null;
  const items = isFresh ? added.items : [];
  const more = useCallback(async () => {
    if (cursor === null) return;
    const page = await listSessions(meter, { ...JSON.parse(question), cursor });
    setAdded({ first, items: [...items, ...page.items], next_cursor: page.next_cursor });
  }, [meter, question, cursor, first, items]);
  return { sessions: first && [...first.items, ...items], hasMore: cursor !== null, more, error, refresh };
}
