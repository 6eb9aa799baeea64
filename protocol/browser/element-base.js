/**
 * The common part of the elements: their meter and session, and when they render.
 */

import { fill, formatTime, words } from './element-words.js';

/** On a server there are no elements: the module can be imported, and defines nothing. */
const Base = globalThis.HTMLElement ?? class {};

const elements = new Set(); // those in the page
let shared = null;

/** Gives a meter to all elements of the page that have none of their own. */
export function use(meter) {
  shared = meter;
  for (const element of elements) element._attach();
}

/** Renders all elements of the page again, after a change of `words`. */
export function refresh() {
  for (const element of elements) element._plan();
}

/** Changes a text only where it differs: screen readers and layouts notice each change. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Changes attributes only where they differ. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== `${value}`) element.setAttribute(name, value);
  }
}

/** Makes an element of the shadow tree, with its names for `::part`. */
export function part(tag, names, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, { part: names, ...attributes });
  element.append(...children);
  return element;
}

const sheets = new Map();

/** A style that all elements of a kind share; a strict `style-src` allows it. */
function sheetOf(css) {
  if (!sheets.has(css)) {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
    sheets.set(css, sheet);
  }
  return sheets.get(css);
}

const COMMON = `
  :host { display: inline-block; font-variant-numeric: tabular-nums;
    --_muted: var(--taximeter-muted, light-dark(#6a645a, #a39b8c));
    --_track: var(--taximeter-track, light-dark(#ddd6c9, #4a463e));
    --_ok: var(--taximeter-ok, light-dark(#1e7355, #6fd6aa));
    --_near: var(--taximeter-near, light-dark(#8f5600, #f5b454));
    --_over: var(--taximeter-over, light-dark(#a2341f, #ff8d73)); }
  :host([hidden]), [hidden] { display: none !important }
  span { unicode-bidi: isolate }
  [part=as-of] { color: var(--_muted); font-size: .8em; margin-inline-start: .5em }
  [part~=ok] { --_level: var(--_ok) }
  [part~=near] { --_level: var(--_near) }
  [part~=over] { --_level: var(--_over) }
  [part=track] { block-size: .5em; border-radius: .25em; overflow: hidden;
    background: var(--_track); border: 1px solid transparent }
  [part=bar] { block-size: 100%; background: var(--_level) }
  @media (forced-colors: active) {
    :host { --_muted: CanvasText }
    [part=bar] { background: Highlight; forced-color-adjust: none } }`;

/**
 * An element that shows a meter.
 *
 * Attributes: `session` is the id of the session to show. With `kind`, the element holds the
 * session: it starts it, and the last element that holds it leaves it. Properties: `meter`, the
 * element's own meter instead of that of `use()`.
 *
 * A subclass has `_build`, which makes its parts, `_render`, which brings them up to date and
 * returns whether to render the next frame, too, and maybe `_follow` for another session and
 * `_hear` for each change of it.
 */
export class TaximeterElement extends Base {
  static observedAttributes = ['session', 'kind', 'counterpart'];
  /** @internal The style of its parts. */
  static css = '';

  #meter = null;
  #ends = []; // what ends our subscriptions: to the meter, and to the session
  #held;
  #session = null;
  #frame;
  #wasLive = false;
  #asOf = null; // when figures were live for the last time
  #note;

  get meter() {
    return this.#meter ?? shared;
  }

  set meter(meter) {
    this.#meter = meter;
    this._attach();
  }

  /** The session that is shown, or null. */
  get shown() {
    return this.#session;
  }

  /** The language of the nearest `lang`; undefined if there is none. */
  get locale() {
    const { lang } = this.closest('[lang]') ?? document.documentElement;
    try {
      return Intl.getCanonicalLocales(lang || [])[0];
    } catch {
      return undefined; // not the name of a language
    }
  }

  connectedCallback() {
    if (!this.shadowRoot) {
      const root = this.attachShadow({ mode: 'open' });
      root.adoptedStyleSheets = [sheetOf(COMMON), sheetOf(this.constructor.css)];
      this.#note = part('span', 'as-of', { hidden: '' });
      root.append(...this._build(), this.#note);
      const { meter } = this;
      if (Object.hasOwn(this, 'meter')) { // it was set before the element was defined
        delete this.meter;
        this.#meter = meter;
      }
    }
    elements.add(this);
    this._attach();
  }

  disconnectedCallback() {
    elements.delete(this);
    this._attach();
    queueMicrotask(() => {
      if (!this.isConnected) this.#session = null; // it was removed, not moved
    });
  }

  /** Waits for the other attributes of this change: a kind belongs to its session. */
  attributeChangedCallback() {
    queueMicrotask(() => this._attach());
  }

  /** @internal Follows the meter and session of now; nothing, out of the page. */
  _attach() {
    const held = this.#held;
    this.#held = null; // released below, after the next one is held: the same one goes on
    for (const end of this.#ends) end?.();
    this.#ends = [];
    cancelAnimationFrame(this.#frame);
    const { meter } = this;
    if (this.isConnected && this.shadowRoot) {
      const sessionId = this.getAttribute('session');
      const kind = this.getAttribute('kind');
      if (meter && kind && sessionId && meter.state !== 'closed') {
        const counterpartId = this.getAttribute('counterpart') ?? undefined;
        const known = meter.find(sessionId);
        // An element that shows a failure must not start the session again: it would never end.
        this.#held = known?._isHeld
          ? known.retain()
          : meter.retain({ kind, sessionId, counterpartId });
      }
      if (meter) this.#ends[0] = meter.subscribe(() => this.#look());
      this.#look();
    }
    held?.release();
  }

  #look() {
    if (!this.isConnected) return; // it was removed by another listener
    const session = this.meter?.find(this.getAttribute('session')) ?? this.#held;
    if (session !== this.#session || !this.#ends[1]) {
      this.#ends[1]?.();
      this.#ends[1] = session?.subscribe(() => {
        this._hear?.();
        this._plan();
      });
      if (session !== this.#session) {
        this.#session = session;
        this.#wasLive = false;
        this.#asOf = null;
        this._follow?.();
      }
    }
    this._plan();
  }

  /** @internal Renders now, and with each frame while figures run; a hidden page has none. */
  _plan() {
    cancelAnimationFrame(this.#frame);
    const isRunning = this.isConnected && this._render();
    this.#frame = isRunning && requestAnimationFrame(() => this._plan());
  }

  /** @internal Says "as of" beside figures that are live no more. */
  _mark(isLive, hasFigures) {
    if (this.#wasLive && !isLive) this.#asOf = Date.now();
    this.#wasLive = isLive;
    const isStale = hasFigures && !isLive;
    this.toggleAttribute('data-stale', isStale);
    this.#note.hidden = !isStale || !this.#asOf;
    if (this.#note.hidden) return;
    put(this.#note, fill(words.asOf, { time: formatTime(this.locale, this.#asOf) }));
  }
}

/** Defines an element, where there are elements, unless the page has defined it. */
export function define(name, element) {
  const registry = globalThis.customElements;
  if (registry && !registry.get(name)) registry.define(name, element);
}
