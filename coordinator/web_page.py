"""Builds the web page's listener where one is asked for. The page's own libraries are an extra, imported only then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.clock import Clock
from common.errors import ConfigInvalid
from common.identifiers import FederationId
from common.rpc.interceptors import OnAnswered, Revocations
from common.rpc.tls import ServerTls, browser_tls
from coordinator.authorization import RULES
from coordinator.config import LimitsConfig, WebConfig, split_address
from coordinator.services.admin import AdminServicer
from coordinator.services.admin_reads import AdminReads
from coordinator.store.interface import Store
from coordinator.wakeups import Wakeups

if TYPE_CHECKING:
    from coordinator.web.listener import WebListener


@dataclass(frozen=True, slots=True)
class OpenWeb:
    """The page's listener and its port."""

    listener: WebListener
    port: int


async def open_web(
    config: WebConfig,
    limits: LimitsConfig,
    *,
    federation: FederationId,
    admin: AdminServicer,
    files: ServerTls,
    revocations: Revocations,
    store: Store,
    clock: Clock,
    wakeups: Wakeups,
    health: Callable[[], Mapping[str, str]],
    on_answered: OnAnswered,
) -> OpenWeb:
    """Serve the page. Raises ConfigInvalid if its libraries are missing or the address cannot be had."""
    try:
        from coordinator.web.access import Access
        from coordinator.web.listener import WebLimits, WebListener
        from coordinator.web.site import Site, SiteParts
    except ModuleNotFoundError as error:
        raise ConfigInvalid(
            f'web.listen needs the extra accord[web] ({error.name} is missing): install it, or set web.listen to ""'
        ) from error
    site = Site(
        SiteParts(
            federation=federation,
            reads=AdminReads(admin, RULES, on_answered),
            access=Access(
                federation=federation, revocations=revocations, store=store, clock=clock, tokens=config.tokens
            ),
            clock=clock,
            wakeups=wakeups,
            health=health,
            pages_a_second=limits.calls_per_second,
            pages_at_once=limits.calls_burst,
        )
    )
    tls = browser_tls(files, requires_certificate=not config.tokens)
    listener = WebListener(site.application, tls, WebLimits())
    host, port = split_address(config.listen)
    return OpenWeb(listener, await listener.start(host, port))
