"""Outside clocks: the facts of call providers, and what becomes of them."""
