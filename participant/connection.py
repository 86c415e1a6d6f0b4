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
from common.errors import AccordError, CertificateRevoked, ConfigInvalid
from common.log import get_logger
from common.version import software_version
from participant.client import CoordinatorClient
from participant.enrollment import renew
from participant.identity import IdentityFiles, IdentityFolder, SiteIdentity
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
        files: IdentityFiles,
        *,
        line: Callable[[str], Line],
        clock: Clock,
        on_expiry: Callable[[datetime], None],
        on_chunk: Callable[[], None] = lambda: None,
    ) -> None:
        """line: how to dial, from the enrolment's address; asked at every turn. on_chunk: see CoordinatorClient."""
        self._files = files
        self._line = line
        self._clock = clock
        self._on_expiry = on_expiry
        self._on_chunk = on_chunk
        self._lock = threading.Lock()
        self._retry_at = clock.now()
        self._trust_offered = self._trust_fetched = ""
        self._identity = files.load()
        self._unread = ""
        self._open = self._dial()

    @property
    def identity(self) -> SiteIdentity:
        """What this site shows at present."""
        return self._identity

    def client(self) -> CoordinatorClient:
        with self._lock:
            return self._open.client

    def keep_valid(self) -> None:
        """Take up a proxy, its password or a certificate that has changed, and renew the certificate when it is due.

        A renewal that fails is tried again later, as there is time.
        """
        line = self._line(self._identity.coordinator_address)
        if line != self._open.line:
            log.info("coordinator_dialled_anew", target=line.route.target, via=line.route.via.strip())
            self._dial_again()
        if not self._identity.enrollment.is_renewed_by_coordinator:
            self._read_again()
        now = self._clock.now()
        self._on_expiry(self._identity.expires_at)
        offered = self._trust_offered
        is_due = self._identity.needs_renewal(now) or self._has_other_trust(offered)
        # A time far ahead is of a clock that was wrong then.
        if (
            not is_due
            or not isinstance(self._files, IdentityFolder)
            or timedelta() < self._retry_at - now <= RETRY_RENEWAL
        ):
            return
        self._retry_at = now + RETRY_RENEWAL
        try:
            renewed = renew(self._files, self._clock, line=self._open.line)
        except CertificateRevoked:
            raise
        except AccordError as error:
            log.error("certificate_not_renewed", reason=error.reason, message=error.message)
            return
        self._retry_at = now
        self._trust_fetched = offered
        log.info("certificate_renewed", expires_at=renewed.expires_at.isoformat())
        self._identity = renewed
        self._dial_again()

    def explain(self, error: AccordError) -> AccordError:
        """Why calls fail: what stands in the way, as far as it can be seen from here. Takes up to half a minute."""
        return explained(error, self._open.line.route, Papers.of(self._files), now=self._clock.now())

    def close(self) -> None:
        for channel in self._open.channels:
            channel.close()

    def _read_again(self) -> None:
        """Take up what the site's own PKI has put in place. While that is half done, what was there before goes on."""
        try:
            found = self._files.load()
            if found.participant != self._identity.participant:
                raise ConfigInvalid(
                    f"{self._files.certificate_file} is now for {found.participant}: that is another site"
                )
        except AccordError as error:
            if error.message != self._unread:
                log.error("certificate_not_renewed", reason=error.reason, message=error.message)
            self._unread = error.message
            return
        self._unread = ""
        if found == self._identity:
            return
        log.info("certificate_renewed", expires_at=found.expires_at.isoformat())
        self._identity = found
        self._dial_again()

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
