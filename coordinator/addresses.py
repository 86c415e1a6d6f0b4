"""Where a coordinator listens, in three tellings: as configured, as tools on its own host dial it, as partners do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from common.durable import write_durably
from coordinator.config import split_address


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running coordinator listens, as tools on its own host dial it; "" for what is off."""

    participants: str
    enrollment: str
    admin: str
    health_http: str
    health_grpc: str
    pid: int
    web: str = ""
    metrics: str = ""

    def write(self, file: Path) -> None:
        """For tools on this host, which find it in the data folder."""
        write_durably(file, json.dumps(asdict(self), indent=2).encode() + b"\n")


def local_address(listen: str, port: int | None) -> str:
    """An address that tools on this host can dial; "" without a port."""
    if not port:
        return ""
    host, _ = split_address(listen)
    if _is_any(host):
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def public_address(said: str, *, listen: str, port: int, host_name: str) -> str:
    """The address that goes into join tokens: what the operator says, or the best that is known."""
    if said:
        host, wanted = split_address(said)
        return said if wanted else f"{host}:{port}"
    host, _ = split_address(listen)
    return f"{host_name}:{port}" if _is_any(host) else local_address(listen, port)


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")  # noqa: S104  compared, not bound
