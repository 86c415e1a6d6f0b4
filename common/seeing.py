"""What both services' configurations say of metrics over TLS and of traces; checked together, in either's words."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from common.http_listener import HttpTls

TLS_FILES: Final = ("certificate", "key", "client_ca")


def check_tls_files(certificate: Path | None, key: Path | None, client_ca: Path | None) -> None:
    """Raises ValueError unless all three are there, or none."""
    given = [name for name, path in zip(TLS_FILES, (certificate, key, client_ca), strict=True) if path is not None]
    if given and len(given) < len(TLS_FILES):
        missing = ", ".join(name for name in TLS_FILES if name not in given)
        raise ValueError(f"mutual TLS also needs {missing}; without any of the three the listener is plaintext")


def http_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> HttpTls | None:
    """The listener's files; None for plaintext."""
    if certificate is None or key is None or client_ca is None:
        return None
    return HttpTls(certificate, key, client_ca)


def checked_endpoint(text: str) -> str:
    """An OTLP endpoint over gRPC, or nothing. Raises ValueError."""
    if not text:
        return text
    parts = urlsplit(text)
    try:
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        is_whole = False
    if not is_whole or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError('write "http://HOST:4317" for plaintext or "https://HOST:4317" for TLS: OTLP over gRPC')
    return text
