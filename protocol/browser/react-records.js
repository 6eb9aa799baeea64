/**
 * Hooks for what an app shows beside a running session: an estimate, and past sessions.
 *
 * While there is no user they ask and show nothing, and no user sees what another one has asked.
 */

import { useCallback, useEffect, useState, useSyncExternalStore } from 'react';
import { useTaximeter } from './react.js';
import { estimate, listSessions } from './records.js';

const NOTHING = Object.freeze({ value: null, error: null });

/** The meter, and a number that each login has to itself; null while there is no user. */
function useLogin() {
  const { meter, login } = useTaximeter();
  const read = useCallback(
    () => (login && meter._options.token ? meter._era : null),
    [meter, login],
  );
  return { meter, login: useSyncExternalStore(meter.subscribe, read, read) };
}

/**
 * The answer to a question, asked anew when its text or the user changes.
 *
 * An answer belongs to one question of one user: it is never shown for another.
 */
function useAnswer(meter, login, question, ask) {
  const [answer, setAnswer] = useState(NOTHING);
  const [asked, setAsked] = useState(0);
  useEffect(() => {
    if (login === null) return undefined;
    let isCurrent = true;
    const take = (next) => isCurrent && setAnswer({ meter, login, question, ...next });
    ask(meter, JSON.parse(question)).then(
      (value) => take({ value, error: null }),
      (error) => take({ value: null, error }),
    );
    return () => {
      isCurrent = false;
    };
  }, [meter, login, question, ask, asked]);
  const refresh = useCallback(() => setAsked((count) => count + 1), []);
  const isOurs = answer.meter === meter && answer.login === login && answer.question === question;
  return { ...(isOurs ? answer : NOTHING), refresh };
}

/** How long may I talk? `estimate` is null at first; `refresh()` asks again. */
export function useEstimate({ kind, counterpartId, sessionId }) {
  const question = JSON.stringify({ kind, counterpartId, sessionId });
  const { meter, login } = useLogin();
  const { value, error, refresh } = useAnswer(meter, login, question, estimate);
  return { estimate: value, error, refresh };
}

/**
 * The user's sessions, past and live, newest first; `sessions` is null at first.
 *
 * `more()` adds the next page, where `hasMore`; `refresh()` begins again.
 */
export function useSessions({ kind, counterpartId, from, to, limit } = {}) {
  const { meter, login } = useLogin();
  const question = JSON.stringify({ kind, counterpartId, from, to, limit });
  const { value: first, error, refresh } = useAnswer(meter, login, question, listSessions);
  const [added, setAdded] = useState({ first: null, items: [], next_cursor: null });
  const isFresh = added.first === first;
  const cursor = (isFresh ? added : first)?.next_cursor ?? null;
  const items = isFresh ? added.items : [];
  const more = useCallback(async () => {
    const isOver = () => meter._era !== login; // the cursor is that of another user
    if (cursor === null || isOver()) return;
    try {
      const page = await listSessions(meter, { ...JSON.parse(question), cursor });
      setAdded({ first, items: [...items, ...page.items], next_cursor: page.next_cursor });
    } catch (cause) {
      if (!isOver()) throw cause;
    }
  }, [meter, login, question, cursor, first, items]);
  return { sessions: first && [...first.items, ...items], hasMore: cursor !== null, more, error, refresh };
}
