"""Well-signed tokens with odd claims: each claim in every wrong type.

The expected result of each is written beside it. So a token that passes by mistake is found, and so
is one that is refused although issuers write such tokens.
"""

import base64
import hashlib
import hmac
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.fuzz.mutate import Raw, write

NOW: Final = Raw("{now_s}")
"""Placeholder for the current second; the attack inserts it."""
EXPIRES: Final = Raw("{exp}")
_LATER: Final = Raw("{exp}00")
_HUGE: Final[Sequence[Any]] = (
    Raw("1e999"),
    Raw("9" * 400),
    Raw("NaN"),
    Raw("-Infinity"),
    -1,
    2**63,
)
_NO_IDS: Final[Sequence[Any]] = (
    "",
    "a b",
    "a/b",
    "ü",
    "x" * 129,
    5,
    1.5,
    True,
    [],
    {},
    ["a"],
    {"id": "a"},
)
_NO_LISTS: Final[Sequence[Any]] = (
    *(None, "s", "", 5, True, {}, {"a": 1}, [1], [None], ["a b"], [["a"]], ["x" * 129]),
    Raw("[" * 2_000 + "]" * 2_000),
    [f"id-{number}" for number in range(3_000)],
)
_NO_TIMES: Final[Sequence[Any]] = ("1", "soon", True, False, [], {}, [1], *_HUGE)

GOOD: Final[Mapping[str, Sequence[Any]]] = {
    "sub": ("auth0|5f7c", "ann+x@example.com", "a=b~c", "x" * 128, "waad|A_-.:=", "0"),
    "scope": (None, "", "  ", [], [""], ["org:read", "a b"], "openid profile", "OPS ops:rea"),
    "nbf": (None, 0, NOW, Raw("{now_s}.25"), Raw("{soon_s}")),
    "iat": (None, _LATER, "x", [], -1, Raw("1e999")),
    "jti": (None, 5, ["x"], {"a": [1]}),
    "aud": (None,),
    "org": (None, "evil"),
    "account": (None, "evil-account"),
    "sessions": ([], ["theirs-1"], ["a|b=c~"]),
    "kinds": ([], ["chat"], ["unknown"]),
    "counterparts": ([], ["them"]),
    "scp": (None, "ops", ["ops"]),
    "permissions": (["ops"], {"ops": True}),
    "realm_access": ({"roles": ["ops"]},),
}
"""Values with which a token is valid."""
BAD: Final[Mapping[str, Sequence[Any]]] = {
    "sub": (None, *_NO_IDS),
    "scope": (5, 0, True, False, {}, {"ops": True}, [1], [None], [["ops"]], ["ops", 1], 1.5),
    "nbf": (_LATER, *_NO_TIMES),
    "exp": (None, *_NO_TIMES),
    "aud": ("", "another", ["another"], ["a", "b"], [], {}, 5, True, [None], [1]),
    "org": _NO_IDS,
    "account": _NO_IDS,
    "sessions": _NO_LISTS,
    "kinds": _NO_LISTS,
    "counterparts": _NO_LISTS,
}
"""Values with which a token is invalid: this server has no audience of its own."""


def odd_claims(rng: random.Random, number: int) -> tuple[str, bool]:
    """The case's claims as JSON, and whether their token is valid.

    Each case has its own user, so it uses up no budget of another case.
    """
    claims: dict[str, Any] = {"sub": f"stranger-{number}", "exp": EXPIRES}
    names = rng.sample(sorted(GOOD), rng.choice((0, 1, 2, 5)))
    claims |= {name: rng.choice(GOOD[name]) for name in names}
    is_good = rng.random() < 0.4
    if not is_good:
        name = rng.choice(sorted(BAD))
        claims[name] = rng.choice(BAD[name])
        if claims[name] is None and rng.random() < 0.5 and name in ("sub", "exp"):
            del claims[name]  # the claim is missing
    return write(list(claims.items())), is_good


def signed(claims: str, secret: str) -> str:
    """A signed token with claims that no library would write."""
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}).encode(), claims.encode()]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.digest(secret.encode(), text, hashlib.sha256)
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()
