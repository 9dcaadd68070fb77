"""Results from parsed JSON documents."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar
from collections.abc import Mapping

Document = TypeVar("Document")


def from_document(kind: type[Document], document: object, place: str = "") -> Document:
    """A result of this kind from a parsed JSON document; unknown fields are ignored.

    Raises:
        ValueError: a field is missing or of another type; the message names it.
    """
    value = _read(kind, document, place or kind.__name__)
    return typing.cast(Document, value)


def _read(kind: Any, value: object, place: str) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return None if value is None else _read(arguments[0], value, place)
    if origin is tuple:
        items = _expect(value, list, place)
        return tuple(_read(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        entries = _expect(value, dict, place)
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in entries.items()}
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, _expect(value, dict, place), place)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(value, kind, place)


def _read_fields(kind: Any, document: Mapping[str, object], place: str) -> object:
    types = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    missing = [name for name in names if name not in document]
    if missing:
        raise ValueError(f"{place}: no field {missing[0]!r}")
    return kind(**{name: _read(types[name], document[name], f"{place}.{name}") for name in names})


def _expect(value: Any, kind: Any, place: str) -> Any:
    # True is an int to Python, but no count.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{place}: expected {kind.__name__}, found {value!r}")
    return value
