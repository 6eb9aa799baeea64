"""Directed worlds of grants, spends and holds, up to the record."""

from tests.simulation.directed.steps import (
    FLUSH,
    FORGET,
    NO_FLUSHER,
    OTHER,
    RICH,
    SERVE,
    UNTIL_IT_IS_OLD,
    Directed,
    adjust,
    answered,
    ask,
    elsewhere,
    hold,
    minute_at,
    post,
    report,
    sketch,
    told,
    void,
)
from tests.simulation.people import CREDIT
from tests.simulation.traces import FLUSHER, NODE, act, mishaps, pay, start, wait


def _flusher_dies(questions: int, apart_s: int) -> Directed:
    """A flusher dies before it has acknowledged what it wrote to Postgres."""
    spends = (
        step for number in range(8) for step in (sketch("cat9", f"e{number}", 1000), wait(apart_s))
    )
    return Directed((
        RICH, sketch("cat9", "e", 1000), FLUSH, NO_FLUSHER, *spends,
        act("flusher", name="first", pace_ms=10_000),
        mishaps("first", "redis", *[["none"]] * (questions - 1), ["died_after"]), wait(11),
        sketch("cat9", "f1", 1000), act("flusher", name="second", pace_ms=10_000), wait(30),
    ), "money")  # fmt: skip


MONEY = {
    "a balance is shown while Redis forgets the account": Directed((
        RICH, SERVE, act("show", node=NODE, user="cat9"), act("show", node=OTHER, user="cat9"),
        sketch("cat9", "e0"), sketch("cat9", "e1"), sketch("cat9", "e2"), wait(5), FLUSH, FORGET,
        sketch("cat9", "e3"), wait(5), start("s1"), wait(30), sketch("cat9", "e4"), wait(5),
    )),
    "spends and holds are asked for again": Directed((
        RICH, sketch("cat9", "e0"), hold("cat9", "h8", 1), post("cat9", "h8", 1),
        hold("cat9", "h9", 1), void("cat9", "h9"),  # now Redis has the scripts
        mishaps(NODE, "redis", ["unanswered"]), sketch("cat9", "e1"), sketch("cat9", "e1"),
        act("again", node=NODE, entry="e1"), answered("e1", "done"),
        mishaps(NODE, "redis", ["unanswered"]), hold("cat9", "h1", CREDIT),
        act("again", node=NODE, entry="hold:h1"), answered("hold:h1", "done"),
        act("transfer", node=NODE, kind="hold", user="cat9", entry="hold:h7", hold="h7", micros=1,
            ttl_ms=60_000, form=1), post("cat9", "h7", 1),
        mishaps(NODE, "redis", ["none"], ["unanswered"]), post("cat9", "h1", CREDIT // 2),
        act("again", node=NODE, entry="p-h1"), hold("cat9", "h2", CREDIT),
        mishaps(NODE, "redis", ["none"], ["unanswered"]), void("cat9", "h2"),
        act("again", node=NODE, entry="v-h2"), wait(5), FLUSH, wait(5),
        post("cat9", "h1", CREDIT // 2, "p-again"), void("cat9", "h2", "v-again"),
        hold("cat9", "h3", CREDIT), void("cat9", "h3"), post("cat9", "h3", 1, "p-late"),
        hold("cat9", "h4", CREDIT), post("cat9", "h4", 2 * CREDIT, "p-much"),
        answered("p-much", "refused"), post("cat9", "h4", CREDIT, "p-all"), wait(5),
    )),
    "everything reaches Redis twice": Directed((
        RICH, sketch("cat9", "e0"), hold("cat9", "h0", 1), void("cat9", "h0"), *(
            step for asked in (
                sketch("cat9", "e1"), hold("cat9", "h1", CREDIT), hold("cat9", "h2", CREDIT),
                post("cat9", "h1", CREDIT // 2), void("cat9", "h2"), pay("cat9", CREDIT, "g2"),
                start("s1"), ask("s1", "pause"), ask("s1", "resume"), ask("s1", "stop"),
                report("t1", minute_at(1)), report("t1", minute_at(2)), adjust("m1", 1),
            ) for step in (mishaps(NODE, "redis", *[["twice"]] * 6), asked, wait(1))
        ), wait(10),
    )),
    "holds of nothing": Directed((
        RICH, hold("cat9", "h1", 0), post("cat9", "h1", 0), hold("cat9", "h2", 0),
        void("cat9", "h2"), sketch("cat9", "e1", 0), hold("cat9", "h3", CREDIT),
        post("cat9", "h3", 0), wait(5),
    )),
    "holds and spends of an account that owes": Directed((
        pay("cat9", CREDIT), start("s1"), wait(5), pay("cat9", -2 * CREDIT, "taken"),
        hold("cat9", "h1", 0), answered("hold:h1", "done"), sketch("cat9", "e1", 0),
        answered("e1", "done"), start("s2", kind="recording"),
        told("c-s2", "session", state="active"), start("s3", kind="chat"),
        told("c-s3", "session", state="active"), hold("cat9", "h2", 1),
        answered("hold:h2", "refused"),
        sketch("cat9", "e2", 1), answered("e2", "refused"), wait(90),
    )),
    "an account has as many holds as it may": Directed((
        RICH, *(hold("cat9", f"h{number}", CREDIT) for number in range(5)),
        answered("hold:h3", "done"), answered("hold:h4", "refused"), void("cat9", "h0"),
        hold("cat9", "h5", CREDIT), answered("hold:h5", "done"), post("cat9", "h1", 1),
        hold("cat9", "h6", CREDIT), answered("hold:h6", "done"), wait(5),
    ), "money"),
    "an operation is done as often as it may": Directed((
        RICH, *(sketch("cat9", f"e{number}", often=2) for number in range(3)),
        answered("e1", "done"), answered("e2", "refused"),
        *(hold("cat9", f"h{number}", CREDIT, often=2) for number in range(3)),
        answered("hold:h1", "done"), answered("hold:h2", "refused"), void("cat9", "h0"),
        hold("cat9", "h4", CREDIT, often=2), answered("hold:h4", "done"), post("cat9", "h4", 1),
        hold("cat9", "h5", CREDIT, often=2), answered("hold:h5", "refused"), wait(5),
    )),
    "operations are loaded anew": Directed((
        RICH, sketch("cat9", "e1"), sketch("cat9", "e2"), hold("cat9", "h1", CREDIT),
        post("cat9", "h1", 1), wait(5), FLUSH, FORGET, sketch("cat9", "e3", often=2),
        answered("e3", "refused"), hold("cat9", "h2", CREDIT, often=1),
        answered("hold:h2", "refused"), sketch("cat9", "e4", often=3), answered("e4", "done"),
        FLUSH, FORGET, hold("cat9", "h3", CREDIT, often=2), answered("hold:h3", "done"), wait(5),
    )),
    "a hold ends by itself": Directed((
        RICH, hold("cat9", "h1", CREDIT, 20_000), hold("cat9", "h2", CREDIT, 40_000),
        act("transfer", node=NODE, kind="hold", user="cat9", entry="hold:h3", hold="h3",
            micros=CREDIT, ttl_ms=2_000, form=1),
        wait(3), post("cat9", "h3", 1), answered("p-h3", "refused"), void("cat9", "h3"), wait(26),
        post("cat9", "h1", 1), void("cat9", "h1"), wait(200),
    )),
    "a hold ends while its process pauses": Directed((
        RICH, hold("cat9", "h1", CREDIT, 59_000), wait(58.9), void("cat9", "h1"),
        hold("cat9", "h2", CREDIT, 2_000), wait(2), void("cat9", "h2"), post("cat9", "h2", 1),
        wait(200),
    )),
    "a hold outlasts its account": Directed((
        RICH, wait(600), hold("cat9", "h1", CREDIT, 86_000_000), wait(5), FLUSH, FORGET,
        hold("cat9", "h2", CREDIT), post("cat9", "h1", CREDIT), wait(60), FLUSH, FORGET,
        void("cat9", "h2"), wait(60), FLUSH, FORGET, sketch("cat9", "e1"), wait(5),
    )),
    "a hold is forgotten after its end": Directed((
        RICH, hold("cat9", "h1", CREDIT), post("cat9", "h1", 1), hold("cat9", "h2", CREDIT),
        void("cat9", "h2"), FLUSH, wait(3_700), post("cat9", "h1", 1, "p-late"),
        void("cat9", "h2", "v-late"), wait(5),
    )),
    "an account is drawn on a day later": Directed((
        RICH, sketch("cat9", "e0"), hold("cat9", "h0", CREDIT), post("cat9", "h0", CREDIT),
        hold("cat9", "h1", CREDIT), wait(3600 * 20), sketch("cat9", "e1"),
        hold("cat9", "h2", CREDIT),
        post("cat9", "h2", CREDIT), hold("cat9", "h3", CREDIT), void("cat9", "h3"), wait(5), FLUSH,
        wait(3600 * 5), sketch("cat9", "e2"), wait(5),
    )),
    "an account that only spends is drawn on a day later": Directed((
        RICH, sketch("cat9", "e0"), wait(3600 * 20), sketch("cat9", "e1"), wait(5), FLUSH,
        wait(3600 * 20), act("transfer", node=NODE, kind="spend", user="cat9", entry="e2",
                             micros=CREDIT, form=1),
        hold("cat9", "h1", CREDIT), wait(5),
    )),
    "spends are remembered and forgotten": Directed((
        RICH,
        *(step for number in range(8) for step in (sketch("cat9", f"e{number}"), FLUSH, wait(2))),
        *(step for number in range(8, 13) for step in (
            wait(UNTIL_IT_IS_OLD), sketch("cat9", f"e{number}"), FLUSH)), wait(5),
    ), "money"),
    "young spends are all remembered": Directed((
        RICH, act("kill", name=FLUSHER),
        *(step for number in range(9) for step in (sketch("cat9", f"e{number}"), wait(2))),
        *(hold("cat9", f"h{number}", 0) for number in range(2)), post("cat9", "h0", 0),
        wait(70), act("flusher", name="late", pace_ms=1_000), wait(5), sketch("cat9", "f1"),
        sketch("cat9", "f2"), wait(1), sketch("cat9", "f3"), wait(5),
    ), "money"),
    "grants are remembered and forgotten": Directed((
        RICH, sketch("cat9", "e0"),
        *(step for number in range(8) for step in (pay("cat9", 1, f"g{number}"), wait(2))),
        *(step for number in range(8, 13) for step in (
            wait(UNTIL_IT_IS_OLD), pay("cat9", 1, f"g{number}"))), wait(5),
    ), "money"),
    "the first grant of an account in use": Directed((
        start("s1", "ann9", "recording"), pay("ann9", CREDIT), wait(5), pay("ann9", 1, "g2"),
        wait(5), ask("s1", "stop"), wait(5),
    )),
    "a grant comes to an account that nobody has": Directed((
        RICH, sketch("cat9", "e1"), wait(5), FLUSH, FORGET, pay("cat9", 2 * CREDIT, "g2"),
        sketch("cat9", "e2"), wait(5), FLUSH, FORGET, sketch("cat9", "e3"),
        pay("cat9", CREDIT, "g3"), pay("cat9", -CREDIT, "a1"), wait(5),
    )),
    "more is asked for than there is": Directed((
        pay("cat9", 3 * CREDIT), hold("cat9", "h1", 2 * CREDIT), sketch("cat9", "e1", 2 * CREDIT),
        answered("e1", "refused"), hold("cat9", "h2", 2 * CREDIT), answered("hold:h2", "refused"),
        sketch("cat9", "e2", CREDIT), answered("e2", "done"), wait(5),
        void("cat9", "h1"), answered("v-h1", "done"), hold("cat9", "h3", 2 * CREDIT),
        answered("hold:h3", "done"), wait(5),
    )),
    "what a session holds is recalled for a spend": Directed((
        pay("cat9", 3 * CREDIT), start("s1"), wait(1), sketch("cat9", "e1", 2 * CREDIT),
        answered("e1", "done"), wait(30),
    )),
    "what a session holds elsewhere is recalled for a spend": Directed((
        SERVE, pay("cat9", 3 * CREDIT), elsewhere("s1"), wait(1), sketch("cat9", "e1", 2 * CREDIT),
        answered("e1", "done"), wait(30),
    )),
    "what a session holds is recalled for a hold": Directed((
        SERVE, pay("cat9", 3 * CREDIT), elsewhere("s1"), wait(1), hold("cat9", "h1", 2 * CREDIT),
        answered("hold:h1", "done"), wait(30), void("cat9", "h1"), wait(60),
    )),
    "a session needs what it holds, whatever is asked for": Directed((
        pay("cat9", 3 * CREDIT), start("s1"), wait(1), sketch("cat9", "e1", 2_980_000),
        answered("e1", "refused"), hold("cat9", "h1", 2_980_000), answered("hold:h1", "refused"),
        wait(30),
    )),
    "too much waits for the ledger": Directed((
        NO_FLUSHER, RICH, act("mishaps", name=NODE, where="postgres", kinds=[]),
        *(sketch("cat9", f"e{number}", 1000) for number in range(27)),
        hold("cat9", "h1", CREDIT), start("s1"), wait(5),
        act("flusher", name="late", pace_ms=1_000), wait(10),
    ), "full"),
    "a flusher dies between two acknowledgements": _flusher_dies(5, 0),
    "a flusher dies after two acknowledgements": _flusher_dies(6, 0),
    "a flusher dies between two acknowledgements of another time": _flusher_dies(5, 1),
    "an entry is refused by Postgres": Directed((
        NO_FLUSHER, RICH, act("poison", partition=0), sketch("cat9", "e1"),
        act("poison", partition=1), act("poison", partition=0), act("poison", partition=1),
        act("flusher", name="first", pace_ms=10_000), wait(30),
    ), "money"),
}  # fmt: skip
