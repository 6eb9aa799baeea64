// Hot reload, as development servers do it; it must be there before React is.
import { injectIntoGlobalHook, performReactRefresh, register, setSignature } from 'react-refresh/runtime';

injectIntoGlobalHook(window);
Object.assign(window, { performReactRefresh, register, setSignature });
