"""`accord-participant check`: everything that could go wrong at a site, looked at one by one before it does.

Changes nothing but the cache of converted base models; what each check looks at is in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

from common.basemodel import BaseModel
from common.certificates import spki_sha256
from common.clock import Clock
from common.errors import AccordError
from common.version import software_version
from participant.config import ParticipantConfig, load_config
from participant.identity import IdentityFiles, SiteIdentity
from participant.network.dialling import Line
from participant.policy import Policy
from participant.policy_file import load_policy
from participant.preflight import content, credentials, machine, network
from participant.preflight.network import Answer
from participant.preflight.report import Check, Finding, Result, Verdict, ok, run_checks, skipped
from participant.training.result import Progress

__all__ = ["CHECK_NAMES", "Finding", "Site", "Verdict", "before_start", "hindrances", "preflight"]


class Site:
    """What the checks look at, each part read when the first check asks for it.

    on_progress: of base models that are converted or fetched.
    """

    def __init__(
        self, config_file: Path, *, clock: Clock, on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        self.config_file = config_file
        self.clock = clock
        self._on_progress = on_progress

    @cached_property
    def config(self) -> ParticipantConfig:
        return load_config(self.config_file)

    @cached_property
    def policy(self) -> Policy:
        return load_policy(self.config.policy_file)

    @cached_property
    def files(self) -> IdentityFiles:
        return self.config.identity

    @cached_property
    def identity(self) -> SiteIdentity:
        return self.files.load()

    @cached_property
    def line(self) -> Line:
        return self.config.coordinator.line(self.identity.coordinator_address)

    @cached_property
    def answer(self) -> Answer:
        return network.ask(self.identity, self.line, clock=self.clock)

    @cached_property
    def processors(self) -> machine.Processors | Result:
        return machine.processors()

    @cached_property
    def offered_models(self) -> tuple[content.OfferedModel, ...]:
        return content.offered_models(
            self.config.base_models, cache_folder=self.config.cache_directory, on_progress=self._on_progress
        )


def _config(site: Site) -> Result:
    count = len(site.config.base_models)
    return ok(f"{site.config_file}, {count} base model{'s' if count > 1 else ''}")


def _charter(site: Site) -> Result:
    return content.charter(
        site.config.charter,
        federation=site.identity.federation,
        participant=site.identity.participant,
        key_sha256=spki_sha256(site.identity.certificate.public_key()),
    )


def _call(site: Site) -> Result:
    try:
        answer = site.answer
    except AccordError as error:
        return network.call_failed(error)
    milliseconds = (answer.answered - answer.asked).total_seconds() * 1000
    versions = f"; accord {answer.software_version} there, {software_version()} here" if answer.software_version else ""
    return ok(f"{site.line.route.target} answers and knows this site ({milliseconds:.0f} ms){versions}")


def _privacy(site: Site) -> Result:
    # Where the training stack is missing, the check that says so must not end in an import.
    from participant.preflight import privacy

    return privacy.budget(site.config, site.policy)


def _memory(site: Site) -> Result:
    if isinstance(site.processors, Result):
        return skipped("needs torch")
    models = [entry.model for entry in site.offered_models if entry.model is not None]
    largest: BaseModel = max(models, key=lambda model: model.parameters)
    return machine.memory(largest, site.processors, site.config.training)


CHECKS: Final[tuple[Check[Site], ...]] = (
    Check("software", lambda site: machine.software()),
    Check("config", _config, action="correct the file; deploy/examples/participant.toml explains every setting"),
    Check(
        "policy",
        lambda site: content.policy(site.policy),
        needs=("config",),
        action="correct the file; deploy/examples/policy.toml explains every bound",
    ),
    Check("hours", lambda site: content.hours(site.policy, now=site.clock.now()), needs=("policy",)),
    Check(
        "disk",
        lambda site: machine.disk(site.config.state_directory, least_free_mebibytes=site.config.least_free_mebibytes),
        needs=("config",),
        action="check the file system",
    ),
    Check("identity", lambda site: credentials.identity_files(site.files), needs=("config",)),
    Check(
        "certificate",
        lambda site: credentials.certificate(site.identity, now=site.clock.now()),
        needs=("identity",),
    ),
    Check(
        "charter",
        _charter,
        needs=("identity",),
        action="compare charter and digest with the other members; `accord-participant charter pin` fetches it anew",
    ),
    Check("name", lambda site: network.name_resolution(site.line.route), needs=("identity",)),
    Check("port", lambda site: network.port(site.line.route), needs=("name",)),
    Check(
        "tls",
        lambda site: network.tls(site.line.route, site.files, now=site.clock.now()),
        needs=("certificate", "port"),
    ),
    Check("call", _call, needs=("tls",)),
    Check("clock", lambda site: network.clock_skew(site.answer), needs=("call",)),
    Check(
        "published_charter",
        lambda site: content.published_charter(site.config.charter, site.answer.charter),
        needs=("call",),
        action="ask the federation's operator: the coordinator's charter cannot be read",
    ),
    Check("device", lambda site: machine.device(site.processors, site.config.training), needs=("software", "config")),
    Check("base_models", lambda site: content.base_models(site.offered_models, site.policy), needs=("policy",)),
    Check("memory", _memory, needs=("device", "base_models")),
    Check(
        "data",
        lambda site: content.records(site.config.data.settings(site.policy)),
        needs=("policy",),
        action="correct data in participant.toml, or the file; its records have the fields instruction and output, "
        "prompt and completion, or messages",
    ),
    Check(
        "privacy",
        _privacy,
        needs=("data",),
        action="accord-participant privacy says what was promised and spent",
    ),
)
CHECK_NAMES: Final = tuple(check.name for check in CHECKS)
# Without these the daemon could do nothing but fail, for as long as nobody changes something here.
NEEDED_TO_START: Final = frozenset({"software", "config", "policy", "identity", "certificate", "charter"})
# Looked at before a start, too, because that takes seconds. All of it may be well again by itself, and until then the
# daemon tries again, or tells the coordinator why it is out of a round. The rest (models, records) takes longer.
NOTED_BEFORE_START: Final = frozenset({"disk", "hours", "name", "port", "tls", "call", "clock", "published_charter"})


def preflight(
    site: Site,
    *,
    chosen: Callable[[str], bool] = lambda name: True,
    on_start: Callable[[str], None] = lambda name: None,
) -> Iterator[Finding]:
    """A finding for every check, in order, each as soon as it is known."""
    return run_checks(CHECKS, site, chosen=chosen, on_start=on_start)


def hindrances(site: Site) -> tuple[Finding, ...]:
    """What keeps the daemon from starting: nothing, or what somebody at this site has to put right."""
    findings = preflight(site, chosen=lambda name: name in NEEDED_TO_START)
    return tuple(finding for finding in findings if finding.verdict is Verdict.FAILED)


def before_start(
    site: Site, *, will_enroll: bool = False, on_start: Callable[[str], None] = lambda name: None
) -> Iterator[Finding]:
    """The quick checks. Only what keeps the daemon from starting fails; a coordinator that is away does not.

    will_enroll: the site is not enrolled yet, and the daemon has a join token with which it will begin.
    """
    chosen = NEEDED_TO_START | NOTED_BEFORE_START
    needed = NEEDED_TO_START - {"identity"} if will_enroll else NEEDED_TO_START
    for finding in preflight(site, chosen=lambda name: name in chosen, on_start=on_start):
        if finding.verdict is Verdict.FAILED and finding.check not in needed:
            yield replace(finding, verdict=Verdict.WARNING)
        elif finding.verdict is not Verdict.SKIPPED or finding.check in chosen:
            yield finding
