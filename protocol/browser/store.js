/**
 * A store: an EventTarget with a view that changes, as `useSyncExternalStore` wants it.
 */

/** The view of a session that was left, and of every session on a server. */
export const OFF = Object.freeze({ status: 'off' });

const isSame = (view, next) =>
  Object.keys({ ...view, ...next }).every((name) => Object.is(view[name], next[name]));

/**
 * An EventTarget with a view, which `_view()` of the subclass makes.
 *
 * The three functions are bound. `getSnapshot` gives the same frozen object until something
 * in it has changed.
 */
export class Store extends EventTarget {
  #view;
  /** @internal Rises when nothing of before may be heard any more. */
  _era = 0;

  /** Calls `listener` after each change; returns a function that ends that. */
  subscribe = (listener) => {
    const call = () => listener();
    this.addEventListener('change', call);
    return () => this.removeEventListener('change', call);
  };

  getSnapshot = () => (this.#view ??= Object.freeze(this._view()));

  /** @internal Makes the view anew, and tells the subscribers if it differs. */
  _change() {
    const view = this._view();
    if (this.#view && isSame(this.#view, view)) return;
    this.#view = Object.freeze(view);
    this._tell();
  }

  /** @internal Calls the subscribers. */
  _tell() {
    this.dispatchEvent(new Event('change'));
  }

  /** @internal Dispatches an event with this `detail`, after the change that it reports. */
  _emit(type, detail) {
    const era = this._era;
    this._change();
    if (era === this._era) this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
