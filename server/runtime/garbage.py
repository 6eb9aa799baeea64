"""Settings of Python's garbage collector.

Python counts references, so most objects are freed at once; the collector only finds cycles. A
socket and a session that end leave no cycle. One that starts leaves some twenty objects (the HTTP
protocol and its parser), which a collection of young objects finds. A full collection finds almost
nothing and stops a process of a few thousand sessions for some hundred milliseconds. By default it
repeats while the number of sessions grows, and a session's stop that falls into one is that late.
"""

import gc

YOUNG_OBJECTS = 700
"""New objects that start a collection of the youngest, which takes a third of a millisecond. A
collection of the survivors of two such collections takes one millisecond. With two thousand it took
three, and young collections were the longest part of the longest turns."""
YOUNG_LOOKS = 2
"""Young collections after which the survivors of one are examined once more; then they are old."""
MIDDLE_LOOKS = 715
"""Such collections after which all objects are examined, if a quarter of them is new. That is a
million new objects: 15,000 sessions, or garbage that should not exist."""


def look_rarely() -> None:
    """Sets the collector for a server; call after imports and set-up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS, MIDDLE_LOOKS)
