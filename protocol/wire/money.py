"""Credits: decimal strings on the wire, integer micro-credits inside.

PROTOCOL: "credits are decimal strings with at most 6 decimals ("12.5"), held inside as integer
micro-credits". No conversion goes through a float.
"""

import re

from protocol import limits
from protocol.wire.errors import BadMessageError

MICROS_PER_CREDIT = 1_000_000

CREDITS_PATTERN = r"^-?(0|[1-9][0-9]{0,9})(\.[0-9]{1,6})?$"
"""The wire's form of credits, as a pattern of JSON Schema."""

AMOUNT_PATTERN = r"^(1000000000(\.0{1,6})?|(?!0(\.0*)?$)(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?)$"
"""The amount of one entry: more than 0, and at most ``AMOUNT_MICROS_MAX``."""
NOT_NEGATIVE_PATTERN = r"^(1000000000(\.0{1,6})?|(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?)$"
"""An amount that may be 0."""
PRICE_PATTERN = r"^(10000(\.0{1,6})?|(0|[1-9][0-9]{0,3})(\.[0-9]{1,6})?)$"
"""The price of a minute: at most ``PRICE_MICROS_MAX``; 0 for a free kind."""

_CREDITS = re.compile(r"(-?)(0|[1-9][0-9]{0,19})(?:\.([0-9]{1,6}))?")


def parse_credits(
    text: object,
    *,
    signed: bool = False,
    name: str = "credits",
    micros_max: int = limits.AMOUNT_MICROS_MAX,
) -> int:
    """Returns the micro-credits in ``text``; ``signed`` allows a minus.

    The text must be digits with at most 6 decimals: no plus, exponent, spaces, leading zeros or
    digits of other scripts. The amount must be at most ``micros_max``. Any other text raises
    :class:`BadMessageError`, which calls the field ``name``.
    """
    if not isinstance(text, str):
        raise BadMessageError(f'{name}: expected a decimal string such as "12.5"')
    match = _CREDITS.fullmatch(text)
    if match is None:
        raise BadMessageError(
            f'{name}: expected a decimal string with at most 6 decimals, such as "12.5"'
        )
    sign, whole, fraction = match.groups()
    if sign and not signed:
        raise BadMessageError(f"{name}: must not be negative")
    micros = int(whole) * MICROS_PER_CREDIT + int((fraction or "").ljust(6, "0"))
    if micros > micros_max:
        raise BadMessageError(f"{name}: must be at most {format_credits(micros_max)}")
    return -micros if sign else micros


def format_credits(micros: int) -> str:
    """Returns the shortest decimal string: ``"12.5"``, ``"0"``, ``"-0.000001"``."""
    whole, fraction = divmod(abs(micros), MICROS_PER_CREDIT)
    sign = "-" if micros < 0 else ""
    if fraction == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:06d}".rstrip("0")
