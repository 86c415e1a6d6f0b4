"""Preflight checks of what the site brings: its policy and hours, its charter, its base models and its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from common.basemodel import BaseModel, describe
from common.charter import Charter
from common.errors import AccordError, CharterInvalid
from participant.config import BaseModelConfig, CharterConfig, CharterMode
from participant.policy import Policy
from participant.preflight.report import Result, failed, ok, warning
from participant.toml_file import HUB_PREFIX
from participant.training import data
from participant.training.job import DataSettings
from participant.training.process import prepare_base_model
from participant.training.result import DataReport, Progress

OnProgress = Callable[[Progress], None]

_SHOWN_BAD_RECORDS: Final = 5


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A base model of the configuration: its description, or why there is none."""

    source: str
    model: BaseModel | None
    error: str = ""


# --- policy and hours ----------------------------------------------------------------------------------------------


def policy(site: Policy) -> Result:
    """The policy can be read; says what it comes to, and what nobody can meet."""
    if not site.hours.openings:
        return failed("the policy has no hours, so the site never takes part", "add hours.allow to the policy file")
    models = "any base model" if site.base_models is None else f"{len(site.base_models)} base models"
    said = f"{models}, rank to {site.adapter.most_rank}, at least {site.masking.least_cohort} sites in a sum"
    return ok(f"{said}, at most {site.most_rounds_in_a_run} rounds a run")


def hours(site: Policy, *, now: datetime) -> Result:
    """Whether the site would take part at this moment."""
    if site.hours.is_open(now):
        return ok("the site's hours are open now")
    opening = site.hours.next_opening(now)
    if opening is None:
        return failed("the site's hours never open", "add hours.allow to the policy file")
    local = opening.astimezone(site.hours.time_zone)
    return warning(
        f"outside the site's hours; they open on {local:%A %Y-%m-%d at %H:%M} ({site.hours.time_zone})",
        "nothing, if that is meant: no round is begun until then",
    )


# --- charter -------------------------------------------------------------------------------------------------------


def read_pinned(config: CharterConfig) -> Charter:
    """The site's own copy of the charter. Raises CharterInvalid if it is missing, broken or not the pinned one."""
    if config.file is None or config.digest is None:
        raise CharterInvalid('the configuration pins no charter: charter.mode is "coordinator"')
    try:
        content = config.file.read_bytes()
    except OSError as error:
        raise CharterInvalid(
            f"cannot read the pinned charter {config.file}: {error.strerror}; "
            "write it with `accord-participant charter pin`"
        ) from error
    charter = Charter.from_bytes(content)
    if charter.digest != config.digest:
        raise CharterInvalid(
            f"{config.file} has digest {charter.digest}, the configuration pins {config.digest}: either the file or "
            "the digest is not the one that was agreed on; ask the other members, not the coordinator"
        )
    return charter


def charter(config: CharterConfig, *, federation: str, participant: str, key_sha256: str) -> Result:
    """The pinned charter is there, has the pinned digest, and names this site with its key."""
    if config.mode is CharterMode.COORDINATOR:
        return warning(
            "the coordinator is trusted to be honest about who takes part",
            'pin the charter for real data: `accord-participant charter pin`, then charter.mode = "pinned"',
        )
    own = read_pinned(config)
    if own.federation != federation:
        return failed(
            f"the pinned charter is of federation {own.federation}, the certificate of {federation}",
            "pin this federation's charter, or enroll with the other federation",
        )
    member = own.member(participant)
    if member is None:
        return failed(
            f"the pinned charter does not name {participant}; its members are {', '.join(own.member_ids)}",
            "agree with the other members on a charter that names this site, and pin that",
        )
    if member.identity_key_sha256 is not None and member.identity_key_sha256 != key_sha256:
        return failed(
            f"the charter pins key {member.identity_key_sha256[:16]}… for {participant}, this site's is "
            f"{key_sha256[:16]}…",
            "restore the identity directory that was enrolled, or agree on a charter with the new key",
        )
    return ok(f"{len(own.members)} members, digest {own.digest[:16]}… as pinned")


def published_charter(config: CharterConfig, published: bytes | None) -> Result:
    """The coordinator works under the charter that this site has pinned."""
    if published is None:
        return warning(
            "the coordinator has published no charter yet", "ask the federation's operator; no run can be made before"
        )
    digest = Charter.from_bytes(published).digest
    if config.mode is CharterMode.COORDINATOR:
        return ok(f"the coordinator's charter has digest {digest[:16]}…")
    if digest != config.digest:
        return failed(
            f"the coordinator works under charter {digest[:16]}…, this site pins {(config.digest or '')[:16]}…: "
            "runs will be refused",
            "compare both with the other members by another way than the coordinator; look at the coordinator's with "
            "`accord-participant charter show`",
        )
    return ok("the coordinator works under the pinned charter")


# --- base models ---------------------------------------------------------------------------------------------------


def base_model_folder(source: str, *, cache_folder: Path, on_progress: OnProgress) -> Path:
    """The local safetensors folder of a source; a child process converts or fetches what is not there yet."""
    if not source.startswith(HUB_PREFIX) and not source.lower().endswith(".gguf"):
        return Path(source)
    return prepare_base_model(source, cache_folder=cache_folder, on_progress=on_progress)


def offered_models(
    models: Sequence[BaseModelConfig], *, cache_folder: Path, on_progress: OnProgress
) -> tuple[OfferedModel, ...]:
    """Every base model of the configuration, with what it came to."""
    offered: list[OfferedModel] = []
    for entry in models:
        try:
            folder = base_model_folder(entry.source, cache_folder=cache_folder, on_progress=on_progress)
            model = describe(folder, cache_folder=cache_folder)
        except AccordError as error:
            offered.append(OfferedModel(entry.source, None, error.message))
            continue
        if entry.digest is not None and entry.digest != model.digest:
            problem = f"{entry.source} has digest {model.digest}, the configuration names {entry.digest}"
            offered.append(OfferedModel(entry.source, None, problem))
            continue
        offered.append(OfferedModel(entry.source, model))
    return tuple(offered)


def base_models(offered: Sequence[OfferedModel], site: Policy) -> Result:
    """Every base model is there, is the one that it should be, and is allowed by the site's own policy."""
    broken = [entry.error for entry in offered if entry.model is None]
    if broken:
        return failed(
            "; ".join(broken),
            "correct base_models in participant.toml, or put the model's files where it points "
            "(`accord-participant describe-model SOURCE` shows what a source comes to)",
        )
    found = [entry.model for entry in offered if entry.model is not None]
    said = ", ".join(f"{model.name} ({model.digest[:16]}…)" for model in found)
    if site.base_models is not None:
        refused = [model.name for model in found if model.digest not in site.base_models]
        if len(refused) == len(found):
            return failed(
                f"{said}: the site's own policy allows none of them",
                "add the digest to base_models.allow in policy.toml",
            )
        if refused:
            return warning(
                f"{said}: the policy does not allow {', '.join(refused)}", "remove it, or add its digest to policy.toml"
            )
    return ok(said)


# --- records -------------------------------------------------------------------------------------------------------


def records(settings: DataSettings) -> Result:
    """The data files can be read, and hold records of what domains and tasks; the first bad ones with their lines."""
    dataset = data.load(settings)
    counts = Counter((record.domain, record.task.value) for record in dataset.train)
    held_out = Counter((record.domain, record.task.value) for record in dataset.held_out)
    kinds = ", ".join(
        f"{domain}/{task} {counts[domain, task]} + {held_out[domain, task]} held out"
        for domain, task in sorted(counts | held_out)
    )
    said = f"{len(dataset.train)} records to train on: {kinds}"
    reports = [dataset.train_report]
    if settings.held_out_path is not None:
        reports.append(dataset.held_out_report)
    bad = [report for report in reports if report.bad]
    if bad:
        return warning(
            f"{said}; {'; '.join(map(_bad_records, bad))}", "repair or remove these records; they are left out"
        )
    if not dataset.held_out:
        return warning(
            f"{said}; none is held out, so this site cannot judge an adapter",
            "set data.held_out_file, or a larger data.held_out_fraction",
        )
    alone = sorted(f"{domain}/{task}" for domain, task in set(counts) - set(held_out))
    if alone:
        return warning(
            f"{said}; none of {', '.join(alone)} is held out",
            "add held-out records of it, or a larger held_out_fraction",
        )
    return ok(said)


def _bad_records(report: DataReport) -> str:
    shown = "; ".join(f"line {record.line}: {record.reason}" for record in report.bad_examples[:_SHOWN_BAD_RECORDS])
    more = f"; and {report.bad - _SHOWN_BAD_RECORDS} more" if report.bad > _SHOWN_BAD_RECORDS else ""
    return f"{report.bad} of {report.read} records in {report.path} cannot be used ({shown}{more})"
