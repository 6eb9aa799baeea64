/**
 * Custom elements that show a meter: `<taximeter-clock>`, `<taximeter-usage>`,
 * `<taximeter-credits>` and `<taximeter-notices>`.
 *
 *     import { Taximeter } from 'taximeter';
 *     import { use } from 'taximeter/elements';
 *     use(new Taximeter({ token: fetchToken }));
 *
 *     <taximeter-clock kind="chat" session="chat-17"></taximeter-clock>
 *
 * Colours are CSS variables (`--taximeter-ok`, `-near`, `-over`, `-muted`, `-track`, and `-ink`
 * and `-surface` of notices), every part has a name for `::part`, and `words` has every text.
 */

import { TaximeterElement, define, part, put, refresh, set, use } from './element-base.js';
import {
  fill,
  formatClock,
  formatHours,
  formatNumber,
  formatTime,
  plural,
  words,
  wordsOf,
} from './element-words.js';

export { TaximeterElement, refresh, use, words };

/** From these parts of a limit on, its bar warns. */
const NEAR = 0.8;
const TOAST_MS = 9_000;
const TOASTS_MOST = 4;
/** The states in which warnings are out of date. */
const OVER = ['off', 'stopping', 'ended'];
/** Decimals of credits that are drawn as large as the whole. */
const DECIMALS = 2;
/** Credits have micros. */
const DIGITS_MOST = 6;

const NONE = '–';
const ONE_DECIMAL = { minimumFractionDigits: 1 };
const isLiveMeter = (meter) => meter?.getSnapshot().connection === 'live';

/**
 * The time of a session; `figure` is `elapsed` (default), `remaining` or `free`.
 *
 * `tenths` adds them, unless the user wants less motion. The role is `timer`, which screen
 * readers read on request and never by themselves.
 */
export class TaximeterClock extends TaximeterElement {
  static observedAttributes = [...TaximeterElement.observedAttributes, 'figure', 'tenths'];
  static css = '@media (prefers-reduced-motion: reduce) { [part=tenths] { display: none } }';
  #face;
  #time;
  #tenths;

  _build() {
    this.#time = part('span', 'time');
    this.#tenths = part('small', 'tenths');
    this.#face = part('span', 'face', { role: 'timer', 'aria-live': 'off' }, this.#time, this.#tenths);
    return [this.#face];
  }

  _render() {
    const { locale, shown } = this;
    const figure = this.getAttribute('figure') ?? 'elapsed';
    const view = shown?.getSnapshot() ?? {};
    const reading = view.receipt ?? shown?.now();
    const field = figure === 'free' ? 'free_remaining_ms' : `${figure}_ms`;
    const ms = reading?.[field] ?? (figure === 'elapsed' ? 0 : null);
    set(this.#face, { 'aria-label': words[figure] ?? figure });
    set(this, { 'data-status': view.status ?? 'off' });
    put(this.#time, ms === null ? NONE : formatClock(locale, ms));
    const hasTenths = ms !== null && this.hasAttribute('tenths');
    const tenths = (Math.floor(ms / 100) % 10) / 10;
    // Without its zero: the clock has the whole seconds.
    put(this.#tenths, hasTenths ? formatNumber(locale, tenths, ONE_DECIMAL).slice(1) : '');
    this._mark(view.live === true, view.live !== undefined);
    return view.status === 'running' && view.live;
  }
}

/** The balance of the account; `digits` (default 2) after the point. */
export class TaximeterCredits extends TaximeterElement {
  static observedAttributes = [...TaximeterElement.observedAttributes, 'digits'];
  static css = '[part=rest], [part=unit] { color: var(--_muted); font-size: .8em }';
  #figure;
  #rest;
  #unit;

  _build() {
    this.#figure = part('span', 'figure');
    this.#rest = part('span', 'rest');
    this.#unit = part('span', 'unit');
    return [part('span', 'amount', {}, this.#figure, this.#rest), ' ', this.#unit];
  }

  _render() {
    const { meter, locale, shown } = this;
    const account = meter?.getSnapshot() ?? { credits: null };
    const { status, receipt } = shown?.getSnapshot() ?? {};
    // After its end a session has old figures, but those of another user's account are not ours.
    const isOurs = status === 'ended' && receipt?.user_id === account.user_id;
    const credits = (isOurs ? null : shown?.now()?.credits) ?? account.credits;
    const wanted = Math.abs(this.getAttribute('digits') ?? DECIMALS);
    const digits = Math.min(DIGITS_MOST, wanted || 0);
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    // Credits are shown rounded down: a page never shows more than there is.
    const whole = Math.floor((credits ?? 0) * 10 ** digits + 1e-6) / 10 ** digits;
    const text = credits === null ? NONE : formatNumber(locale, whole, options);
    const cut = credits === null ? 1 : text.length - Math.max(0, digits - DECIMALS);
    put(this.#figure, text.slice(0, cut));
    put(this.#rest, text.slice(cut));
    put(this.#unit, plural(locale, words.credits, whole, options));
    this._mark(isLiveMeter(meter), credits !== null);
    return status === 'running' && isLiveMeter(meter);
  }
}

/** The month's usage: a bar for each limit, and a text where there is none. */
export class TaximeterUsage extends TaximeterElement {
  static css = `
    :host { display: block }
    [part~=row] { display: grid; gap: .35em }
    [part~=row] + [part~=row] { margin-block-start: .9em }
    [part=text] { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1em }
    [part=value] { color: var(--_muted) }
    [part=bar] { transition: inline-size .4s }
    @media (prefers-reduced-motion: reduce) { [part=bar] { transition: none } }`;
  #rows;

  _build() {
    this.#rows = ['member', 'org'].map((owner) => {
      const [name, value] = [part('span', 'name'), part('span', 'value')];
      const bar = part('div', 'bar');
      const track = part('div', 'track', { role: 'meter', 'aria-valuemin': 0, hidden: '' }, bar);
      const row = part('div', 'row', {}, part('div', 'text', {}, name, value), track);
      return { owner, row, name, value, track, bar };
    });
    return this.#rows.map(({ row }) => row);
  }

  _render() {
    const usage = this.meter?.getSnapshot().usage;
    for (const row of this.#rows) this.#renderRow(row, usage);
    this._mark(isLiveMeter(this.meter), Boolean(usage));
  }

  #renderRow({ owner, row, name, value, track, bar }, usage) {
    const { locale } = this;
    const usedMs = usage?.[`${owner}_used_ms`] ?? null;
    const limitMs = usage?.[`${owner}_limit_ms`] ?? null;
    const hasBar = usedMs !== null && limitMs !== null;
    // An organisation without a limit is not shown to its members.
    row.hidden = owner === 'org' && !hasBar;
    track.hidden = !hasBar;
    const { name: title } = wordsOf(`${owner}_minutes`);
    put(name, title);
    const used = usedMs === null ? NONE : formatHours(locale, usedMs);
    const limit = hasBar && formatHours(locale, limitMs);
    const text = fill(limit ? words.usedOf : usedMs === null ? used : words.used, { used, limit });
    put(value, text);
    const ratio = limitMs === 0 ? 1 : Math.min(1, usedMs / (limitMs ?? Infinity));
    set(row, { part: `row ${ratio >= 1 ? 'over' : ratio >= NEAR ? 'near' : 'ok'}` });
    if (!hasBar) return;
    bar.style.inlineSize = `${ratio * 100}%`;
    set(track, {
      'aria-label': title,
      'aria-valuetext': text,
      'aria-valuemax': limitMs,
      'aria-valuenow': Math.min(usedMs, limitMs),
    });
  }
}

/**
 * What a user must hear of a session: warnings as toasts, and the stop at a limit with the
 * grace that is left to save.
 *
 * `upgrade-href` adds a link to the panel of the stop; the slot `actions` takes further buttons.
 * A toast goes after `toast-ms` (9 s; 0: it stays), but not while it has the pointer or the
 * focus, or the page is hidden.
 */
export class TaximeterNotices extends TaximeterElement {
  static observedAttributes = [...TaximeterElement.observedAttributes, 'toast-ms', 'upgrade-href'];
  static css = `
    :host { display: block }
    [part=toasts] { display: grid; gap: .5em }
    [part~=toast], [part~=limit] { padding: .7em .9em; border-radius: .6em;
      border: 1px solid var(--_track); border-inline-start: .3em solid var(--_level);
      background: var(--taximeter-surface, Canvas); color: var(--taximeter-ink, CanvasText) }
    [part~=toast] { display: flex; gap: 1em; align-items: start; justify-content: space-between }
    [part~=limit] { display: grid; gap: .5em }
    [part=title], [part=seconds] { font-weight: 650 }
    [part=actions] { display: flex; flex-wrap: wrap; gap: .6em }
    [part=upgrade] { color: inherit }
    [part=dismiss] { font: inherit; color: inherit; background: none; border: 0;
      min-inline-size: 1.5rem; min-block-size: 1.5rem }
    :focus-visible { outline: 3px solid; outline-offset: 2px }`;
  #toasts;
  #limit;
  #title;
  #text;
  #grace;
  #seconds;
  #unit;
  #track;
  #bar;
  #upgrade;
  #stoppedAt; // by the browser's clock; null if unknown
  #status = 'off';
  #seen = -1; // the seq of the newest notice that was shown

  connectedCallback() {
    super.connectedCallback();
    for (const toast of this.#toasts.children) this.#arm(toast);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    for (const toast of this.#toasts.children) clearTimeout(toast.timer);
  }

  _build() {
    this.#toasts = part('div', 'toasts', { role: 'status' });
    this.#title = part('div', 'title');
    this.#text = part('div', 'text');
    this.#seconds = part('span', 'seconds');
    this.#unit = part('span', 'unit');
    // It counts beside the alert: a change in there would be announced.
    this.#grace = part('div', 'grace', { role: 'timer' }, this.#seconds, ' ', this.#unit);
    this.#bar = part('div', 'bar');
    this.#track = part('div', 'track', { 'aria-hidden': true }, this.#bar);
    this.#upgrade = part('a', 'upgrade');
    const slot = part('slot', '', { name: 'actions' });
    this.#limit = part(
      'div',
      'limit over',
      { hidden: '' },
      part('div', 'alert', { role: 'alert' }, this.#title, this.#text),
      this.#grace,
      part('div', 'actions', {}, this.#upgrade, slot),
      this.#track,
    );
    return [this.#limit, this.#toasts];
  }

  /** @internal What was told before this element came is no news. */
  _follow() {
    const { notices = [] } = this.shown?.getSnapshot() ?? {};
    this.#seen = notices.at(-1)?.seq ?? -1;
    this._hear();
  }

  /** @internal Tells at once what is new, before a listener of the page tells more. */
  _hear() {
    const { status = 'off', notices = [] } = this.shown?.getSnapshot() ?? {};
    const isNew = status !== this.#status;
    this.#status = status;
    for (const notice of notices) {
      if (notice.seq <= this.#seen) continue;
      this.#seen = notice.seq;
      this.#tell(notice);
    }
    if (!isNew || !OVER.includes(status)) return;
    this.#stoppedAt = null;
    for (const toast of [...this.#toasts.children]) if (toast.isNotice) this.#remove(toast);
  }

  _render() {
    const view = this.shown?.getSnapshot() ?? {};
    const isStopping = view.status === 'stopping';
    this.#limit.hidden = !isStopping;
    if (isStopping) this.#renderLimit(view);
    return isStopping && view.live;
  }

  #renderLimit({ limit, grace_ms: graceMs }) {
    const { locale } = this;
    const leftMs = this.shown.now().grace_left_ms ?? 0;
    if (leftMs) this.#stoppedAt ??= Date.now() + leftMs - graceMs;
    const time = this.#stoppedAt && formatTime(locale, this.#stoppedAt);
    put(this.#title, fill(words.stopped, { why: wordsOf(limit).why }));
    const at = time ? `${fill(words.stoppedAt, { time })} ` : '';
    const advice = limit === 'credits' ? words.topUp : words.save;
    put(this.#text, `${at}${words.notCharged} ${advice}`);
    const seconds = Math.ceil(leftMs / 1000);
    this.#grace.hidden = this.#track.hidden = !leftMs;
    put(this.#seconds, formatNumber(locale, seconds));
    put(this.#unit, plural(locale, words.secondsLeft, seconds));
    this.#bar.style.inlineSize = `${(leftMs / graceMs) * 100}%`;
    const href = this.getAttribute('upgrade-href');
    this.#upgrade.hidden = !href;
    if (href) set(this.#upgrade, { href });
    put(this.#upgrade, words.upgrade);
  }

  #tell({ type, limit, remaining_ms: leftMs, paid }) {
    const { soon, name } = wordsOf(limit);
    const time = formatClock(this.locale, Math.ceil((leftMs ?? 0) / 1000) * 1000);
    const told = {
      free_time: paid && [words.freeTimeOver, 'near', type],
      limit_cleared: [fill(words.cleared, { limit: name }), 'ok', limit],
      limit_warning: [fill(words.warning, { limit: soon, time }), 'near', limit],
    }[type];
    if (told) this.toast(...told).isNotice = true;
  }

  /**
   * Shows a text for a while, in the colour of a `level`: `ok`, `near` or `over`.
   *
   * It replaces an earlier one about the same `topic`. Returns its element.
   */
  toast(text, level = 'ok', topic = text) {
    for (const old of [...this.#toasts.children]) if (old.topic === topic) this.#remove(old);
    const close = part('button', 'dismiss', { type: 'button', 'aria-label': words.dismiss }, '✕');
    const toast = part('div', `toast ${level}`, {}, part('span', 'toast-text', {}, text), close);
    toast.topic = topic;
    close.addEventListener('click', () => this.#remove(toast));
    this.#toasts.append(toast);
    this.#arm(toast);
    if (this.#toasts.children.length > TOASTS_MOST) this.#remove(this.#toasts.firstChild);
    return toast;
  }

  /** Removes a toast; the focus stays among the toasts. */
  #remove(toast) {
    const next = toast.matches(':focus-within') && (toast.nextSibling ?? toast.previousSibling);
    clearTimeout(toast.timer);
    toast.remove();
    if (next) next.lastChild.focus();
  }

  #arm(toast) {
    const toastMs = Number(this.getAttribute('toast-ms') ?? TOAST_MS);
    clearTimeout(toast.timer);
    if (!toastMs) return;
    toast.timer = setTimeout(() => {
      const isNeeded = document.hidden || toast.matches(':hover, :focus-within');
      if (isNeeded) this.#arm(toast);
      else this.#remove(toast);
    }, toastMs);
  }
}

define('taximeter-clock', TaximeterClock);
define('taximeter-credits', TaximeterCredits);
define('taximeter-usage', TaximeterUsage);
define('taximeter-notices', TaximeterNotices);
