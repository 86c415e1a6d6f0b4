"""Files that systemd hands to a service alone: where `${CREDENTIALS_DIRECTORY}/NAME` in a configuration leads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from common.errors import ConfigInvalid

VARIABLE: Final = "CREDENTIALS_DIRECTORY"
PLACEHOLDER: Final = f"${{{VARIABLE}}}"
# Where those of running services lie, for commands that their users type.
OF_SERVICES: Final = Path("/run/credentials")


def with_credentials(path: Path, *, unit: str) -> Path:
    """The path with the placeholder that it may begin with filled in. unit: the service's, for commands beside it."""
    if not path.parts or path.parts[0] != PLACEHOLDER:
        return path
    return Path(os.environ.get(VARIABLE) or OF_SERVICES / unit, *path.parts[1:])


def read_secret(path: Path, *, key: str) -> str:
    """The first line of a file that holds a secret. Raises ConfigInvalid that names the setting and not the secret."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigInvalid(f"{key}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{key}: {path} is not text") from error
    if not lines or not lines[0].strip():
        raise ConfigInvalid(f"{key}: {path} is empty")
    return lines[0].strip()
