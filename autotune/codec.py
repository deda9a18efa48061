"""Records as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
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


def from_json(kind: Any, data: Any) -> Any:
    """The inverse of `to_json` for a record type (nested records, tuples, unions with None)."""
    return _reader(kind)(data)


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads the values of a type; made once, for a search reads all its trials after each."""
    if kind is Point:
        return Point.from_knobs
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = [(f.name, _reader(hints[f.name])) for f in dataclasses.fields(kind)]
        return lambda data: kind(**{name: read(data[name]) for name, read in fields if name in data})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in arguments:
        rest = [argument for argument in arguments if argument is not type(None)]
        read = _reader(rest[0]) if len(rest) == 1 else _as_it_is
        return lambda data: None if data is None else read(data)
    if origin is tuple:
        parts = [_reader(argument) for argument in arguments if argument is not Ellipsis]
        if Ellipsis in arguments:
            return lambda data: tuple(map(parts[0], data))
        return lambda data: tuple(read(value) for read, value in zip(parts, data, strict=True))
    if origin is not None and len(arguments) == 2:
        read = _reader(arguments[1])
        return lambda data: {key: read(value) for key, value in data.items()} if isinstance(data, Mapping) else data
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value
