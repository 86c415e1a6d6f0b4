"""The connection to the coordinator: opened with the site's certificate, opened anew when that is renewed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import grpc

from common import tracing
from common.clock import Clock
from common.errors import AccordError, CertificateRevoked
from common.log import get_logger
from common.version import software_version
from participant.client import CoordinatorClient
from participant.enrollment import renew
from participant.identity import IdentityFolder, SiteIdentity
from participant.network.dialling import Line, dial, dial_for_uploads
from participant.network.looking import Papers, explained

RETRY_RENEWAL: Final = timedelta(minutes=10)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Open:
    client: CoordinatorClient
    channels: tuple[grpc.Channel, ...]
    line: Line


class Connection:
    """Gives the client of the moment. `keep_valid` is called by the daemon before every turn."""

    def __init__(
        self,
        folder: IdentityFolder,
        *,
        line: Callable[[str], Line],
        clock: Clock,
        on_expiry: Callable[[datetime], None],
        on_chunk: Callable[[], None] = lambda: None,
    ) -> None:
        """line: how to dial, from the enrolment's address; asked at every turn. on_chunk: see CoordinatorClient."""
        self._folder = folder
        self._line = line
        self._clock = clock
        self._on_expiry = on_expiry
        self._on_chunk = on_chunk
        self._lock = threading.Lock()
        self._retry_at = clock.now()
        self._trust_offered = self._trust_fetched = ""
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
        """Take up a proxy, or its password, that has changed, and renew the certificate when it is due.

        A renewal that fails is tried again later, as there is time.
        """
        line = self._line(self._identity.coordinator_address)
        if line != self._open.line:
            log.info("coordinator_dialled_anew", target=line.route.target, via=line.route.via.strip())
            self._dial_again()
        now = self._clock.now()
        self._on_expiry(self._identity.expires_at)
        offered = self._trust_offered
        is_due = self._identity.needs_renewal(now) or self._has_other_trust(offered)
        if not is_due or now < self._retry_at:
            return
        try:
            renewed = renew(self._folder, self._clock, line=self._open.line)
        except CertificateRevoked:
            raise
        except AccordError as error:
            self._retry_at = now + RETRY_RENEWAL
            log.error("certificate_not_renewed", reason=error.reason, message=error.message)
            return
        self._trust_fetched = offered
        log.info("certificate_renewed", expires_at=renewed.expires_at.isoformat())
        self._identity = renewed
        self._dial_again()

    def explain(self, error: AccordError) -> AccordError:
        """Why calls fail: what stands in the way, as far as it can be seen from here. Takes up to half a minute."""
        return explained(error, self._open.line.route, Papers.of(self._folder), now=self._clock.now())

    def close(self) -> None:
        for channel in self._open.channels:
            channel.close()

    def _hear_trust(self, trust_bundle_sha256: str) -> None:
        self._trust_offered = trust_bundle_sha256

    def _has_other_trust(self, offered: str) -> bool:
        """Whether the coordinator's CA is being replaced, and this site does not know it yet.

        Asked for once for each that is offered: a coordinator that offers one and hands out another is not asked again
        and again.
        """
        own = self._identity
        return (
            own.enrollment.is_renewed_by_coordinator
            and offered not in ("", self._trust_fetched)
            and offered != own.trust_bundle_sha256
        )

    def _dial_again(self) -> None:
        with self._lock:
            before, self._open = self._open, self._dial()
        # Calls that are under way in other threads end as Unavailable and are made again.
        for channel in before.channels:
            channel.close()

    def _dial(self) -> _Open:
        identity = self._identity
        line = self._line(identity.coordinator_address)
        channel, uploads = dial(identity, line), dial_for_uploads(identity, line)
        channel, uploads = tracing.traced_channel(channel), tracing.traced_channel(uploads)
        client = CoordinatorClient(
            channel, uploads, software_version=software_version(), on_chunk=self._on_chunk, on_trust=self._hear_trust
        )
        return _Open(client, (channel, uploads), line)
