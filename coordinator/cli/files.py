"""Names of the files that commands look for and write."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.errors import NotFound

CONFIG_FILE: Final = "coordinator.toml"
SYSTEM_CONFIG: Final = Path("/etc/accord") / CONFIG_FILE
OPERATOR_CERTIFICATE: Final = "operator.pem"
OPERATOR_KEY: Final = "operator.key"
OPERATOR_CA: Final = "ca.pem"


def write_secret(path: Path, text: str) -> None:
    """Write one line, readable for its owner alone."""
    from common.durable import OWNER_ONLY, write_durably

    write_durably(path, text.encode() + b"\n", mode=OWNER_ONLY)


def find_config(given: Path | None) -> Path:
    """The configuration that a command means. Raises NotFound if none is named and none is in the usual places."""
    if given is not None:
        return given
    for path in (Path(CONFIG_FILE), SYSTEM_CONFIG):
        if path.is_file():
            return path
    raise NotFound(
        f"there is no {CONFIG_FILE} here and no {SYSTEM_CONFIG}; name one with --config, or make one with "
        "`accord-coordinator init`"
    )
