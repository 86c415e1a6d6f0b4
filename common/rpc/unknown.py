"""Fields of a message that this version's API does not have: a newer caller has set them.

Protobuf keeps them out of sight. That is right where a field only tells more, and wrong where it asks for something: a
run must not begin without the privacy that a newer client has asked for.
"""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from common.errors import InvalidArgument
from common.version import software_version


def require_known(message: Message, *, what: str) -> None:
    """Raises InvalidArgument if the message, or one within it, has fields that this version does not know."""
    if unknown := unknown_fields(message):
        raise InvalidArgument(
            f"{what} has fields that accord {software_version()} does not know ({', '.join(unknown)}): upgrade this "
            "side, or leave them out"
        )


def unknown_fields(message: Message, *, path: str = "") -> tuple[str, ...]:
    """Where they are, by the fields' numbers: "settings.98" is field 98 of the field `settings`."""
    prefix = f"{path}." if path else ""
    unknown = UnknownFieldSet(message)
    found = [f"{prefix}{unknown[index].field_number}" for index in range(len(unknown))]
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        parts = (value,) if isinstance(value, Message) else value
        for part in parts:
            found += unknown_fields(part, path=f"{prefix}{field.name}")
    return tuple(dict.fromkeys(found))
