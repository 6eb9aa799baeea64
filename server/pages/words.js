/**
 * The texts of the page, formats of figures, and helpers for elements.
 */

export const LIMITS = {
  credits: { soon: 'Your credits run out', stopped: 'out of credits', left: 'Credits' },
  member_minutes: {
    soon: 'Your minutes of this month end',
    stopped: 'your month is used up',
    left: 'Your month',
  },
  org_minutes: {
    soon: 'Your organisation’s minutes end',
    stopped: 'your organisation’s month is used up',
    left: 'Your organisation’s month',
  },
  member_day_minutes: {
    soon: 'Your minutes of today end',
    stopped: 'your day is used up',
    left: 'Your day',
  },
  org_day_minutes: {
    soon: 'Your organisation’s minutes of today end',
    stopped: 'your organisation’s day is used up',
    left: 'Your organisation’s day',
  },
  session_cap: {
    soon: 'This session reaches its maximum length',
    stopped: 'this session has reached its maximum length',
    left: 'Maximum length',
  },
};
export const CONNECTIONS = {
  idle: 'Not connected',
  connecting: 'Connecting',
  live: 'Live',
  reconnecting: 'Reconnecting',
  offline: 'Offline',
  closed: 'Offline',
};
export const PROBLEMS = {
  limit_reached: 'There is nothing left to run on. Top up, and start again.',
  unavailable: 'The server cannot take this at the moment. Try again in a little while.',
  rate_limited: 'Too many requests at once. Try again in a little while.',
  unknown_kind: 'The rate card of this server has no such kind.',
  forbidden: 'This session belongs to another user.',
  session_ended: 'This session has ended.',
  timeout: 'The server did not answer in time.',
  offline: 'There is no connection to the server.',
};
export const REASONS = {
  client: 'ended by you',
  operator: 'ended by an operator',
  disconnected: 'ended after the connection was lost',
  call_ended: 'ended with the call',
  node_lost: 'ended when a server was lost',
  unavailable: 'ended when the meter could not be reached',
};

export const byId = (id) => document.getElementById(id);
export const calm = matchMedia('(prefers-reduced-motion: reduce)');

/** The name of a kind; `chat-demo` is a chat, too. */
export const nameOfKind = (kind) => (kind.startsWith('chat') ? 'Chat' : 'Recording');

export function clockFace(ms) {
  const seconds = Math.floor(ms / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const pad = (number) => String(number).padStart(2, '0');
  const head = hours ? `${hours}:${pad(minutes)}` : `${minutes}`;
  return `${head}:${pad(seconds % 60)}`;
}
export const countdown = (ms) => clockFace(Math.ceil(ms / 1000) * 1000);
export const timeOfDay = (at) => new Date(at).toLocaleTimeString('en-GB');
export const explain = (error) => PROBLEMS[error.code] ?? error.message;

/** A server's message as a sentence. */
export const sentence = (text) =>
  `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? '' : '.'}`;

export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes an element with children; undefined attributes are left out. */
export function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
