"""Example objects with the fields that Stream's models have."""

import dataclasses
import functools
import types
import typing
from datetime import datetime
from typing import Any

from getstream import models

TYPES: dict[str, Any] = {**vars(models), "datetime": datetime}
DEEP = 6
"""Depth below which optional objects are left out, for models may contain themselves."""


@functools.cache
def field_types(model: type) -> dict[str, Any]:
    """The types of a model's fields, by their names on the wire."""
    hints = typing.get_type_hints(model, TYPES)
    return {
        field.metadata["dataclasses_json"]["letter_case"](field.name): hints[field.name]
        for field in dataclasses.fields(model)
    }


def example(model: type, at: Any, depth: int = 0, **changes: Any) -> dict[str, Any]:
    """An object with every field of the model; its instants are ``at``."""
    unknown = changes.keys() - field_types(model).keys()
    assert not unknown, f"{model.__name__} has no {unknown}"
    return {
        name: changes[name] if name in changes else _value(hint, at, depth)
        for name, hint in field_types(model).items()
    }


def _optional(hint: Any) -> Any | None:
    """The type of an optional field's value; None for a required one."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return None
    return next(part for part in typing.get_args(hint) if part is not type(None))


def _value(hint: Any, at: Any, depth: int) -> Any:
    wanted = _optional(hint)
    if wanted is not None:
        return None if depth >= DEEP else _value(wanted, at, depth)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return example(hint, at, depth + 1)
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)[0]
    empty: dict[Any, Any] = {
        str: "text", int: 0, float: 0.0, bool: False, datetime: at, list: [], dict: {},
    }  # fmt: skip
    return empty.get(typing.get_origin(hint) or hint)


def missing_fields(found: Any, model: Any, path: str = "") -> list[str]:
    """The fields of a model and its inner models that are missing."""
    wanted = _optional(model)
    if wanted is not None:
        return [] if found is None else missing_fields(found, wanted, path)
    if typing.get_origin(model) is list:
        inner = typing.get_args(model)[0]
        return [one for each in found for one in missing_fields(each, inner, f"{path}[]")]
    if not (isinstance(model, type) and dataclasses.is_dataclass(model)):
        return []
    missing = []
    for name, hint in field_types(model).items():
        if name in found:
            missing += missing_fields(found[name], hint, f"{path}.{name}")
        else:
            missing.append(f"{path}.{name}")
    return missing
