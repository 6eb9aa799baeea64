"""When Python looks for garbage.

References are counted, so most of what is let go is gone at once; the collector only finds
what refers to itself. A socket and a session that end leave nothing of that kind, and one
that starts leaves some twenty objects (the HTTP protocol and its parser), which a look at
young objects finds. A look at all objects finds next to nothing, stops a process of a few
thousand sessions for some hundred milliseconds, and by default it happens again and again
while sessions become more: a stop that falls into one is late by that.
"""

import gc

YOUNG_OBJECTS = 700
"""So many more objects than before, and the youngest are looked at: for a third of a millisecond.
What survived two such looks takes one, where with two thousand it took three: looks at the young
were the longest part of the longest turns."""
YOUNG_LOOKS = 2
"""After so many of these, what survived one is looked at once more; then it is old."""
MIDDLE_LOOKS = 715
"""After so many of these everything is looked at, if a quarter of it is new: when a million
objects have come since, 15,000 sessions or garbage that nobody expects."""


def look_rarely() -> None:
    """Sets the collector for a server: call it when everything is imported and set up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS, MIDDLE_LOOKS)
