"""From a YAML mapping to a frozen dataclass; every mistake is a sentence naming key, value and what is accepted."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from stages.errors import UserError, did_you_mean, listing


def build(cls: type, values: Any, where: str) -> Any:
    """An instance of the config class `cls` from the mapping `values` found at `where` in the recipe.

    Raises:
        UserError: an unknown, missing or badly typed option.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: a mapping of options is wanted, found {values!r}")
    known = {field.name: field for field in fields(cls)}
    for name in values:
        if name not in known:
            raise UserError(f"{where}.{name}: unknown option{did_you_mean(name, known)}; accepted: {listing(known)}")
    hints = typing.get_type_hints(cls)
    missing = [name for name, field in known.items() if name not in values and _is_required(field)]
    if missing:
        raise UserError(f"{where}.{missing[0]}: this option is required{_help(known[missing[0]])}")
    given = {name: convert(value, hints[name], f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _help(field: Field[Any]) -> str:
    text = field.metadata.get("help")
    return f" ({text})" if text else ""


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` wants it; no guessing beyond int to float."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), where)
    if origin is Literal:
        if value not in get_args(hint):
            near = did_you_mean(str(value), map(str, get_args(hint)))
            raise UserError(f"{where}: {value!r} is not accepted{near}; accepted: {listing(get_args(hint))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise UserError(f"{where}: a list is wanted, found {value!r}")
        inner = get_args(hint)[0]
        return origin(convert(item, inner, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: a mapping is wanted, found {value!r}")
        return dict(value)
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    return _convert_plain(value, hint, where)


def _convert_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None:
        if type(None) in choices:
            return None
        raise UserError(f"{where}: a value is wanted, found null")
    rest = [choice for choice in choices if choice is not type(None)]
    if isinstance(value, Mapping):  # a mapping can only mean the config class: its mistakes are the ones to tell
        rest = [choice for choice in rest if is_dataclass(choice)] or rest
    for choice in rest[:-1]:
        try:
            return convert(value, choice, where)
        except UserError:
            continue
    return convert(value, rest[-1], where)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _convert_plain(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: a number within 64 bits is wanted, found one of {len(str(value))} digits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: a finite number is wanted, found {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and hint is not bool:
        raise UserError(f"{where}: {_NAMES[hint]} is wanted, found {value!r}")
    if not isinstance(value, hint):
        raise UserError(f"{where}: {_NAMES.get(hint, hint.__name__)} is wanted, found {value!r}")
    return value


def as_dict(config: Any) -> dict[str, Any]:
    """A config with all its options, as plain values."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def semantic_values(config: Any) -> dict[str, Any]:
    """Only the options that change results: what a fingerprint covers."""
    found = {}
    for field in fields(config):
        if field.metadata.get("semantic", True):
            value = getattr(config, field.name)
            found[field.name] = semantic_values(value) if is_dataclass(value) else _plain(value)
    return found
