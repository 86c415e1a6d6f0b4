"""The smart-home maker: which device, place, value, color or item a spoken request names.

Sentence templates of the package home-assistant-intents (Apache-2.0), parsed by hassil. The package has the sentences;
names of devices and rooms are each home's own, so those are given here.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from hassil import parse_sentence
from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    TextChunk,
)
from home_assistant_intents import get_intents

from common.errors import DataInvalid
from demo.sources.records import Entity, Parts, Record, join, ner, split

SITE: Final = "smarthome"
DOMAIN: Final = "smart_home"
INSTRUCTION: Final = (
    'List what the request names, one per line as "type: mention". '
    "Types: Device, Place, Value, Color, Item. Write None if it names nothing."
)
NONE_SHARE: Final = 0.15

# Requests about timers are half of the templates and name nothing but numbers; scenes, persons and lists have names
# that no outsider could tell from other words.
_INTENTS: Final = (
    "HassClimateGetTemperature",
    "HassClimateSetTemperature",
    "HassFanSetSpeed",
    "HassGetState",
    "HassGetWeather",
    "HassLightSet",
    "HassMediaNext",
    "HassMediaPause",
    "HassMediaPlayerMute",
    "HassMediaUnpause",
    "HassSetPosition",
    "HassSetVolume",
    "HassShoppingListAddItem",
    "HassShoppingListCompleteItem",
    "HassTurnOff",
    "HassTurnOn",
    "HassVacuumCleanArea",
    "HassVacuumStart",
)


@dataclass(frozen=True, slots=True)
class _Names:
    """Names that the package leaves to each home. devices: by the kind of device that a template asks for."""

    places: tuple[str, ...]
    floors: tuple[str, ...]
    items: tuple[str, ...]
    devices: Mapping[str, tuple[str, ...]]


# Slots that the model is to name. The other slots (on, open, warm white) stay plain words of the sentence.
_TYPE_OF_SLOT: Final = {
    "name": "Device",
    "area": "Place",
    "floor": "Place",
    "temperature": "Value",
    "position": "Value",
    "fan_speed": "Value",
    "brightness": "Value",
    "volume": "Value",
    "color": "Color",
    "shopping_list_item": "Item",
}
_PLAIN_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "bs_occupancy_states": ("occupied", "triggered", "clear"),
    "bs_open_states": ("open", "closed", "shut"),
    "color_temperature_names": ("candle light", "warm white", "cool white", "daylight"),
    "cover_classes": ("awnings", "blinds", "curtains", "garage doors", "shades", "shutters", "windows"),
    "cover_states": ("open", "closed", "shut", "closing"),
    "lock_states": ("locked", "unlocked"),
    "on_off_states": ("on", "off"),
}
# The templates accept whatever might be said ("switch out each and every lighting throughout the home"); records should
# read like what is said. These rules take the place of the package's, and these edits that of its loose ends.
_OWN_RULES: Final = {
    "all": "all",
    "any": "any",
    "are_all": "are all",
    "are_any": "are any",
    "close": "(close|shut)",
    "everywhere": "everywhere",
    "here": "(here|in here|in this room)",
    "how_many": "how many",
    "in": "in",
    "light": "(lights|lamps)",
    "lockable": "(locks|doors|windows|gates)",
    "media": "(music|movie|song)",
    "numeric_value_set": "(set|change|increase|decrease)",
    "open": "open",
    "set": "(set|change)",
    "temp": "temperature",
    "the": "(the|my)",
    "track": "(song|track)",
    "turn": "(turn|switch)",
    "what_is": "(what's|what is|tell me)",
    "which": "which",
}
_EDITS: Final = (
    ("[to] on", "on"),
    ("[to] off", "off"),
    ("[s]", "s"),
    ("[es]", "es"),
    (" [floor]", ""),
    ("[in]", "in"),
    ("[<in>]", "in"),
    ("[to]", "to"),
    ("[of]", "of"),
    ("[on]", "on"),
    ("{area} [<the>] {name}", "{area} {name}"),
    ("[<set>]", "<set>"),
    ("[<numeric_value_set>]", "<numeric_value_set>"),
)
# A named lamp is not followed by "lights" again, and nobody says "the volume" in a loose order.
_UNNATURAL: Final = ("{name} <light>", "{name} [in", ";")
_TEMPLATES_OF_AN_INTENT: Final = 40
_OPTIONAL_SHARE: Final = 0.7
_REQUESTS: Final = re.compile(
    r"\s*(activate|add|adjust|change|clean|close|deactivate|open|pause|put|set|shut|turn|switch)\b"
)
_OPENINGS: Final = ("", "", "please ", "can you ", "could you ", "would you ")
_WORDS: Final = range(3, 17)
# How often a template is drawn. Most templates name only a place, so those with a device are drawn more often; the
# shopping list has few templates for many items, so it is drawn most, and split by sentence.
_DRAWS: Final = 2
_DRAWS_WITH_DEVICE: Final = 5
_DRAWS_OF_SHOPPING: Final = 15
_SHOPPING: Final = "HassShoppingList"


def build(*, train: int, held_out: int) -> Parts:
    """A sentence template is in one part only; NONE_SHARE of each part names nothing."""
    records = list(_records())
    named = [(template, record) for template, record in records if record.entities]
    nothing = [(template, record) for template, record in records if not record.entities]
    train_none, held_out_none = round(train * NONE_SHARE), round(held_out * NONE_SHARE)
    return join(
        (
            split(named, train=train - train_none, held_out=held_out - held_out_none),
            split(nothing, train=train_none, held_out=held_out_none),
        )
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a sentence; label: what it is, if the model is to name it."""

    text: str
    label: str = ""


class _NotSayable(Exception):
    """The template needs a slot that has no values here."""


def _records() -> Iterator[tuple[str, Record]]:
    """Group (the template) and record, the same every time."""
    names = _names()
    package = get_intents("en")
    if package is None:
        raise DataInvalid("the package home-assistant-intents has no English sentences; install the pinned version")
    rules = {**package["expansion_rules"], **_OWN_RULES}
    for intent in _INTENTS:
        templates = [
            (edited, _devices_of(block, names))
            for block in package["intents"][intent]["data"]
            for edited in map(_edited, block["sentences"])
            if not any(words in edited for words in _UNNATURAL)
        ]
        order = random.Random(intent)
        for template, devices in order.sample(templates, min(len(templates), _TEMPLATES_OF_AN_INTENT)):
            number = {"is": "is" if "{name}" in template else "are"}
            draw = random.Random(f"{intent} {template}")
            is_shopping = intent.startswith(_SHOPPING)
            draws = _DRAWS_WITH_DEVICE if "{name}" in template else _DRAWS
            for _ in range(_DRAWS_OF_SHOPPING if is_shopping else draws):
                try:
                    pieces = _say(
                        parse_sentence(template).expression,
                        rules={**rules, **number},
                        values=_values(names, devices),
                        draw=draw,
                    )
                except _NotSayable:
                    break
                record = _record(pieces, opening=draw.choice(_OPENINGS))
                if len(record.input_text.split()) in _WORDS:
                    yield (record.input_text if is_shopping else template), record


def _edited(template: str) -> str:
    for loose, natural in _EDITS:
        template = template.replace(loose, natural)
    return template


def _names() -> _Names:
    own = json.loads(files("demo").joinpath("data", "smart_home_names.json").read_text(encoding="utf-8"))
    return _Names(
        places=tuple(own["places"]),
        floors=tuple(own["floors"]),
        items=tuple(own["items"]),
        devices={kind: tuple(devices) for kind, devices in own["devices"].items()},
    )


def _values(names: _Names, devices: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """What may stand in each slot."""
    percent = tuple(str(number) for number in range(5, 101, 5))
    return {
        **_PLAIN_VALUES,
        "name": devices,
        "area": names.places,
        "floor": names.floors,
        "shopping_list_item": names.items,
        "temperature": tuple(str(degrees) for degrees in range(15, 27)),
        "position": percent,
        "fan_speed": percent,
        "brightness": percent,
        "volume": percent,
        "color": ("white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "turquoise"),
    }


def _devices_of(block: Mapping[str, object], names: _Names) -> tuple[str, ...]:
    """Devices of the kinds that a block of templates is about."""
    context = block.get("requires_context")
    kinds = context.get("domain") if isinstance(context, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    return tuple(device for kind in kinds for device in names.devices.get(kind, ()))


def _say(
    expression: Expression, *, rules: Mapping[str, str], values: Mapping[str, tuple[str, ...]], draw: random.Random
) -> list[_Piece]:
    """One of the sentences that the template stands for. Raises _NotSayable."""

    def say(part: Expression) -> list[_Piece]:
        return _say(part, rules=rules, values=values, draw=draw)

    match expression:
        case TextChunk():
            return [_Piece(expression.original_text)]
        case Alternative(is_optional=True):
            if draw.random() >= _OPTIONAL_SHARE:
                return []
            # hassil keeps "or nothing" as an empty last choice
            return say(draw.choice([item for item in expression.items if not _is_empty(item)]))
        case Alternative():
            return say(draw.choice(expression.items))
        case Permutation():
            parts = draw.sample(expression.items, len(expression.items))
            return [piece for part in parts for piece in [_Piece(" "), *say(part), _Piece(" ")]]
        case Group():
            return [piece for part in expression.items for piece in say(part)]
        case RuleReference():
            return say(parse_sentence(rules[expression.rule_name]).expression)
        case ListReference():
            slot = expression.list_name
            if not values.get(slot):
                raise _NotSayable
            return [_Piece(draw.choice(values[slot]), _TYPE_OF_SLOT.get(slot, ""))]
    raise _NotSayable


def _is_empty(expression: Expression) -> bool:
    match expression:
        case TextChunk():
            return not expression.original_text
        case Group():
            return all(_is_empty(item) for item in expression.items)
    return False


def _record(pieces: list[_Piece], *, opening: str) -> Record:
    """Blanks are squeezed, and the marks move with their words. Only a request is opened politely."""
    text = opening if _REQUESTS.match("".join(piece.text for piece in pieces)) else ""
    entities: list[Entity] = []
    for piece in pieces:
        words = re.sub(r"\s+", " ", piece.text)
        words = words.lstrip() if not text or text.endswith(" ") else words
        if piece.label:
            entities.append(Entity(len(text), len(text) + len(words), piece.label))
        text += words
    return ner(SITE, DOMAIN, instruction=INSTRUCTION, input_text=text.rstrip(), entities=entities)
