"""The demo's run from start to end: create it, look on, wait for the sites, export the adapter and try it.

Knows nothing of how things look on a screen or in the report.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from common import jsonform
from common.adapters import ADAPTER_FILE, MANIFEST_FILE
from common.errors import AccordError, TrainingFailed, Unavailable
from common.plan import Plan
from demo.domains import Site
from demo.federation import LocalFederation, leashed
from demo.figures import AdapterReport, DomainReport, Example, Figure, RunReport, Stage, stages_of
from demo.founding import Prepared, found, prepare
from demo.progress import View
from demo.questions import Answers, Question, Questions
from demo.settings import DemoSettings
from demo.watch import RunWatch, Snapshot, round_reports, site_figures
from participant.config import load_config
from participant.journal import Journal, RunStanding

RUN: Final = "demo"
LOOK_SECONDS: Final = 0.5
JOIN_SECONDS: Final = 120.0
END_SECONDS: Final = 60.0
STOP_SECONDS: Final = 3.0
MOST_THREADS: Final = 4


class DemoFailed(AccordError):
    """The federation did not get to its end; the message has why."""

    reason = "DEMO_FAILED"


class Stopwatch:
    """Seconds by the name of what took them, in the order of happening."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def run_demo(folder: Path, settings: DemoSettings, view: View) -> RunReport:
    """One federation in `folder`, from nothing to its final adapter. No process is left when this returns or raises.

    Raises ProcessEnded with the last words of a process that has ended, DemoFailed if the run did not succeed, and
    what preparing raises.
    """
    watch = Stopwatch()
    with watch.measure("prepare"):
        prepared = prepare(settings, view)
    federation = LocalFederation(folder)
    try:
        with watch.measure("enrol"):
            found(federation, prepared, settings, view)
        with watch.measure("rounds"):
            _train(federation, prepared, settings, view)
        with watch.measure("export"), view.step("final adapter exported through the admin API, audit log verified"):
            report = _collect(federation, prepared)
    except KeyboardInterrupt:
        view.say("interrupted: ending every process")
        raise
    finally:
        # All that is worth keeping is on disk: nobody has to wait for half a training step.
        federation.stop(seconds=STOP_SECONDS)
    with watch.measure("try"), view.step("PeftModel.from_pretrained loads it in another process, and it answers"):
        examples = ask(folder, report, prepared, settings)
    return replace(report, seconds=watch.seconds, examples=examples)


# --- the run ----------------------------------------------------------------------------------------------------------


def _train(federation: LocalFederation, prepared: Prepared, settings: DemoSettings, view: View) -> None:
    """Create the run, start it when all have joined, and look on until it is over. Raises DemoFailed."""
    admin = federation.admin
    with view.step("run created; every site checks its plan against charter and policy, and joins"):
        admin.create_run(RUN, settings.training.plan_settings(prepared.model))
        _wait_until_joined(federation, len(prepared.sites))
    admin.start_run(f"runs/{RUN}")
    watch = RunWatch(admin, RUN)
    with view.watching():
        snapshot = _look_on(federation, prepared.sites, watch, view)
    if snapshot.state != "succeeded":
        failed = [f"round {view.number}: {view.message}" for view in snapshot.rounds if view.state == "failed"]
        raise DemoFailed("\n".join([f"the run has {snapshot.state}: {snapshot.message}", *failed]))
    with view.step("every site fetches the final adapter and forgets its masking keys"):
        _wait_until_over(federation, prepared.sites)


def _look_on(federation: LocalFederation, sites: tuple[Site, ...], watch: RunWatch, view: View) -> Snapshot:
    """Show the run until it is over; returns its last state."""
    seen: object = None
    stages: dict[str, tuple[Stage, ...]] = {}
    while True:
        federation.require_running()
        try:
            snapshot = watch.look()
        except Unavailable:
            # Most likely it has just ended: then its last words say more than this error.
            time.sleep(LOOK_SECONDS)
            federation.require_running()
            raise
        states = [(site.name, site.state) for site in snapshot.current.sites] if snapshot.current else []
        if (len(snapshot.rounds), states) != seen:
            seen = (len(snapshot.rounds), states)
            published = _published(federation)
            stages = {site.name: stages_of(_figures(federation, site), adapters=published) for site in sites}
        view.show(snapshot, stages)
        if snapshot.is_over:
            return snapshot
        time.sleep(LOOK_SECONDS)


def _wait_until_joined(federation: LocalFederation, count: int) -> None:
    """Raises DemoFailed if a site declines, with its reasons, or does not answer."""
    give_up = time.monotonic() + JOIN_SECONDS
    while True:
        federation.require_running()
        members = federation.admin.run(f"runs/{RUN}")["members"]
        declined = [f"{member['participant']}: {member['message']}" for member in members if not member["joined"]]
        if declined:
            raise DemoFailed("\n".join(["the plan was declined by", *declined]))
        if len(members) == count:
            return
        if time.monotonic() > give_up:
            there = ", ".join(str(member["participant"]) for member in members) or "nobody"
            raise DemoFailed(f"only {there} has joined the run within {JOIN_SECONDS:.0f} s; logs: {federation.folder}")
        time.sleep(LOOK_SECONDS)


def _wait_until_over(federation: LocalFederation, sites: tuple[Site, ...]) -> None:
    """Return when every site has taken note of the run's end, or after a while: nothing depends on it."""
    give_up = time.monotonic() + END_SECONDS
    while time.monotonic() < give_up:
        federation.require_running()
        journals = [Journal(load_config(federation.site_config(site.name)).journal_file) for site in sites]
        try:
            runs = [journal.run(RUN) for journal in journals]
        finally:
            for journal in journals:
                journal.close()
        if all(run is not None and run.standing is RunStanding.OVER for run in runs):
            return
        time.sleep(LOOK_SECONDS)


def _figures(federation: LocalFederation, site: Site) -> dict[str, Figure]:
    """The site's own figures by adapter digest."""
    return site_figures(load_config(federation.site_config(site.name)).journal_file, RUN, site.task)


def _published(federation: LocalFederation) -> list[tuple[int, str]]:
    """(round, digest) of every adapter of the run, the initial one too."""
    rows = federation.admin.adapters(f"runs/{RUN}")
    return [(int(row["round"]), str(row["name"]).removeprefix("adapters/")) for row in rows]


# --- the end ----------------------------------------------------------------------------------------------------------


def _collect(federation: LocalFederation, prepared: Prepared) -> RunReport:
    """Everything worth telling, while the coordinator still runs."""
    admin = federation.admin
    run = admin.run(f"runs/{RUN}")
    plan = Plan.from_bytes(json.dumps(run["plan"]).encode())
    digest = str(run["accepted_adapter_digest"])
    folder = federation.folder / "adapter"
    config = str(federation.coordinator_config)
    federation.command("coordinator", "adapter", "export", "--config", config, "--digest", digest, str(folder))
    audit = admin.verify_audit_log()
    if not audit["intact"]:
        raise DemoFailed(f"the audit log is broken from line {audit['first_broken_sequence']} on")
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    published = _published(federation)
    return RunReport(
        run=RUN,
        state=str(run["state"]),
        rounds_planned=plan.rounds,
        base_model=prepared.model.name,
        base_model_digest=prepared.model.digest,
        base_model_path=str(prepared.folder.folder),
        charter_digest=plan.charter_digest,
        plan_digest=str(run["plan_digest"]),
        plan={key: value for key, value in run["plan"].items() if key not in ("base_model", "instruction_set")},
        audit_lines=int(audit["events"]),
        adapter=AdapterReport(
            path=str(folder),
            digest=digest,
            round=int(manifest["round"]),
            parameters=plan.layout().parameters,
            size_bytes=(folder / ADAPTER_FILE).stat().st_size,
            manifest=manifest,
        ),
        domains=tuple(
            DomainReport(
                site=site.name,
                title=site.title,
                domain=site.domain,
                task=site.task,
                source=site.source,
                train_records=site.train_records,
                heldout_records=site.held_out_records,
                stages=stages_of(_figures(federation, site), adapters=published),
                final_digest=digest,
            )
            for site in prepared.sites
        ),
        rounds=round_reports(admin, RUN),
        seconds={},
    )


def ask(folder: Path, report: RunReport, prepared: Prepared, settings: DemoSettings) -> tuple[Example, ...]:
    """Answers of base and tuned model to the first held-out records of every site, from a process that loads both.

    Raises TrainingFailed with that process's last words.
    """
    instruction_set = str(settings.training.plan_settings(prepared.model)["instruction_set_json"])
    asked = Questions(
        base_model=report.base_model_path,
        adapter=report.adapter.path,
        instruction_set=instruction_set,
        max_length=settings.training.max_length,
        max_new_tokens=settings.judging.max_new_tokens,
        threads=min(os.cpu_count() or 1, MOST_THREADS),
        questions=tuple(_questions(prepared.sites, each=settings.examples)),
    )
    questions, answers = folder / "questions.json", folder / "answers.json"
    questions.write_text(jsonform.encode(asked, Questions), encoding="utf-8")
    done = subprocess.run(
        leashed([sys.executable, "-m", "demo.example", str(questions), str(answers)]),
        # Threads that spin while they wait are slow on a machine that does anything else.
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join(done.stderr.decode(errors="replace").strip().splitlines()[-12:])
        raise TrainingFailed(f"the exported adapter {report.adapter.path} could not be loaded and tried:\n{said}")
    return jsonform.decode(answers.read_bytes(), Answers, what="the answers").examples


def _questions(sites: tuple[Site, ...], *, each: int) -> Iterator[Question]:
    for site in sites:
        with site.held_out_path.open(encoding="utf-8") as lines:
            for line in itertools.islice(lines, each):
                fields = json.loads(line)
                yield Question(
                    site.domain, fields["task"], fields["instruction"], fields.get("input", ""), fields["output"]
                )
