// A page that a server renders and a browser takes over.
import { createElement as h } from 'react';
import { Clock, TaximeterProvider, useCredits, useSession } from '../../../protocol/browser/react.js';

const view = { status: 'running', session_id: 'session-1', elapsed_ms: 65_000 };
const initial = { sessions: { 'session-1': view }, meter: { credits: 4.5 } };

function Chat() {
  const status = useSession({ kind: 'chat', id: 'session-1' }, (session) => session.status);
  return h('div', null, status, h(Clock, { session: 'session-1' }), h('i', null, useCredits()));
}

export const page = (meter) => h(TaximeterProvider, { meter, initial }, h(Chat));
