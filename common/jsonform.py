"""The JSON form of frozen dataclasses: canonical text out, strict reading in.

Knows no type of its own. Canonical means: keys sorted, no spaces, ASCII, so equal values have equal digests.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from common.errors import InvalidArgument

T = TypeVar("T")


_ADAPTERS: Final[dict[type, TypeAdapter[Any]]] = {}


def _adapter(of: type[T]) -> TypeAdapter[T]:
    """Kept, because building one costs a hundred times what using it does."""
    found = _ADAPTERS.get(of)
    if found is None:
        found = _ADAPTERS[of] = TypeAdapter(of)
    return found


def encode(value: T, of: type[T]) -> str:
    """Canonical JSON of a frozen dataclass, nested ones included. Raises ValueError on NaN or infinity."""
    plain = _adapter(of).dump_python(value, mode="json")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def decode(text: str | bytes, of: type[T], *, what: str) -> T:
    """The value that `encode` wrote, or that a person wrote by hand.

    Unknown keys and wrong types are mistakes, and so is a number where text is asked for.
    Raises InvalidArgument that lists every mistake with its path; `what` names the document in the message.
    """
    try:
        return _adapter(of).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(str(part) for part in mistake['loc']) or 'document'}: {mistake['msg']}"
            for mistake in error.errors(include_url=False, include_input=False)
        )
        raise InvalidArgument(f"{what} is not valid: {mistakes}") from error


def digest(text: str) -> str:
    """SHA-256 of a JSON text, lower-case hex."""
    return hashlib.sha256(text.encode()).hexdigest()
