"""The connection to the coordinator: opened with the site's certificate, opened anew when that is renewed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import grpc

from common.clock import Clock
from common.errors import AccordError, CertificateRevoked
from common.log import get_logger
from common.version import software_version
from participant.client import CoordinatorClient
from participant.enrollment import dial, dial_for_uploads, renew
from participant.identity import IdentityFolder, SiteIdentity

RETRY_RENEWAL: Final = timedelta(minutes=10)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Open:
    client: CoordinatorClient
    channels: tuple[grpc.Channel, ...]


class Connection:
    """Gives the client of the moment. `keep_valid` is called by the daemon before every turn."""

    def __init__(
        self, folder: IdentityFolder, *, address: str | None, clock: Clock, on_expiry: Callable[[datetime], None]
    ) -> None:
        """address: HOST:PORT that overrides the one of the enrolment."""
        self._folder = folder
        self._address = address
        self._clock = clock
        self._on_expiry = on_expiry
        self._lock = threading.Lock()
        self._retry_at = clock.now()
        self._identity = folder.load()
        self._open = self._dial()

    @property
    def identity(self) -> SiteIdentity:
        """What this site shows at present."""
        return self._identity

    def client(self) -> CoordinatorClient:
        with self._lock:
            return self._open.client

    def keep_valid(self) -> None:
        """Renew the certificate when it is due; a failure is tried again later, as there is time."""
        now = self._clock.now()
        self._on_expiry(self._identity.expires_at)
        if not self._identity.needs_renewal(now) or now < self._retry_at:
            return
        try:
            renewed = renew(self._folder, self._clock)
        except CertificateRevoked:
            raise
        except AccordError as error:
            self._retry_at = now + RETRY_RENEWAL
            log.error("certificate_not_renewed", reason=error.reason, message=error.message)
            return
        log.info("certificate_renewed", expires_at=renewed.expires_at.isoformat())
        with self._lock:
            before, self._identity = self._open, renewed
            self._open = self._dial()
        # Calls that are under way in other threads end as Unavailable and are made again with the new certificate.
        for channel in before.channels:
            channel.close()

    def close(self) -> None:
        for channel in self._open.channels:
            channel.close()

    def _dial(self) -> _Open:
        identity = self._identity
        if self._address is not None:
            identity = replace(identity, enrollment=replace(identity.enrollment, coordinator_address=self._address))
        channel, uploads = dial(identity), dial_for_uploads(identity)
        return _Open(CoordinatorClient(channel, uploads, software_version=software_version()), (channel, uploads))
