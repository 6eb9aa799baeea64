"""What happens to events between a provider and us."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from tests.calls.fake_calls import SentWebhook


@dataclass(frozen=True, kw_only=True)
class Mischief:
    """How likely each fault is; chances are between 0 and 1."""

    lost: float = 0.0
    repeated: float = 0.0
    delayed: float = 0.0
    delay_ms_max: int = 60_000
    """Longest delay: an event that is delayed is overtaken by those that are not."""

    def deliveries(self, sent: Iterable[SentWebhook], chance: random.Random) -> list[SentWebhook]:
        """The events as they arrive, in that order; ``at_ms`` is the arrival."""
        found = []
        for event in sent:
            if chance.random() < self.lost:
                continue
            copies = 1
            while copies < 3 and chance.random() < self.repeated:
                copies += 1
            for attempt in range(1, copies + 1):
                late_ms = 0
                if chance.random() < self.delayed:
                    late_ms = chance.randint(0, self.delay_ms_max)
                headers = dict(event.headers)
                if "x-webhook-attempt" in headers:
                    headers["x-webhook-attempt"] = str(attempt)
                found.append(event._replace(at_ms=event.at_ms + late_ms, headers=headers))
        chance.shuffle(found)  # those of the same millisecond have no order
        return sorted(found, key=lambda event: event.at_ms)
