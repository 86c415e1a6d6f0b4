"""TOML files as frozen values: strict models, their kinds of value, and mistakes in a person's words.

Knows no single setting. pydantic, because an operator sees every mistake at once, with its path.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from common.errors import ConfigInvalid

HUB_PREFIX: Final = "hub:"
_ADDRESS: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


# --- kinds of value ------------------------------------------------------------------------------------------------


def _path(value: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the file that names them, wherever the command is run."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder / value.expanduser()


def _source(value: str, info: ValidationInfo) -> str:
    if not value.strip():
        raise ValueError("is empty; name a folder, a .gguf file, or hub:owner/name")
    return value if value.startswith(HUB_PREFIX) else str(_path(Path(value), info))


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"{value!r} is not host:port, such as accord.example.org:7443")
    return value


def _digest(value: str) -> str:
    if not _DIGEST.fullmatch(value):
        raise ValueError("is not a digest; it has 64 lower-case hex digits (SHA-256)")
    return value


FilePath = Annotated[Path, AfterValidator(_path)]
Source = Annotated[str, AfterValidator(_source)]
Address = Annotated[str, AfterValidator(_address)]
DigestText = Annotated[str, AfterValidator(_digest)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class StrictModel(BaseModel):
    """Frozen, and a key that nobody reads is a mistake: most are misspelled."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


M = TypeVar("M", bound=StrictModel)


def load(file: Path, model: type[M], **context: object) -> M:
    """Read a file as a model. context: for the model's validators, which also find the file's `folder` there.

    Raises ConfigInvalid that lists every mistake with its path.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"cannot read {file}: {error.strerror}") from error
    try:
        values = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file} is not TOML: {error}") from error
    try:
        return model.model_validate(values, context={**context, "folder": file.resolve().parent})
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        lines = "\n".join(f"  {_told(mistake, values, model)}" for mistake in mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigInvalid(f"{file} has {count}:\n{lines}") from error


def _told(mistake: ErrorDetails, values: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One mistake in a person's words: where, and what to write instead."""
    # A union names its branches in the location; only what stands in the file helps to find it.
    where = [part for part in mistake["loc"] if isinstance(part, int) or not re.search(r"[\[\]()-]", part)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    match mistake["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(where[-1]), _settings_beside(where, model), n=1)
            return f"{path}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            return f"{path}: is missing"
        case "value_error":
            return f"{path or 'file'}: {mistake['ctx']['error']}"
        case _:
            return f"{path}: {mistake['msg']}"


def _settings_beside(where: list[int | str], model: type[BaseModel]) -> list[str]:
    """Names that the section of a misspelled one has."""
    for part in where[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
