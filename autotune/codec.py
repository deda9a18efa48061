"""Records as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from autotune.records import Point


def to_json(record: Any) -> Any:
    """A record (or a nest of them) as plain JSON values: dicts, lists, strings, numbers, None."""
    if isinstance(record, Point):
        return record.knobs()
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(value) for value in record]
    return record


_hints = functools.cache(typing.get_type_hints)


def from_json(kind: Any, data: Any) -> Any:
    """The inverse of `to_json` for a record type (nested records, tuples, unions with None)."""
    if kind is Point:
        return Point.from_knobs(data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        known = {f.name: from_json(hints[f.name], data[f.name]) for f in dataclasses.fields(kind) if f.name in data}
        return kind(**known)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and data is not None:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(from_json(arguments[0], value) for value in data)
        return tuple(from_json(a, value) for a, value in zip(arguments, data, strict=True))
    if type(None) in arguments:
        rest = [a for a in arguments if a is not type(None)]
        return None if data is None else from_json(rest[0], data) if len(rest) == 1 else data
    if origin is not None and isinstance(data, Mapping) and len(arguments) == 2:
        return {key: from_json(arguments[1], value) for key, value in data.items()}
    return data
