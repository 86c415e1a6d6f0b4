"""What the tests of test_systemd.py look at, played inside a container whose PID 1 is systemd; standard library alone.

    python3 systemd_lab.py FOLDER

FOLDER has the package, a base model, records and configurations; results.json and a log go to its `out`. Types what
an operator types, waits for what systemd and the programs say, and judges nothing: that is the tests' part.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BANK = "accord-participant"
COORDINATOR = "accord-coordinator"
OTHERS = ("clinic", "newsroom")
CONFIG = "/etc/accord/coordinator.toml"
NEXT_VERSION = "99.0"
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.3

# Quicker than at a site, and nothing else: the units themselves are the package's.
DROP_IN = {
    BANK: "[Service]\nWatchdogSec=10s\nRestartSec=200ms\n",
    COORDINATOR: "[Service]\nRestartSec=200ms\n",
}
# A certificate is dated back by five minutes, so that half of this one's life is over in a few seconds.
AGED_CERTIFICATE = """
import sys, datetime, pathlib
from common.identifiers import FederationId, ParticipantId
from coordinator.keystore import PkiFolder
from participant.identity import IdentityFolder
folder = IdentityFolder(pathlib.Path("/var/lib/accord-participant/identity"))
authority = PkiFolder(pathlib.Path("/var/lib/accord-coordinator/pki")).load_authority(FederationId("lab"))
now = datetime.datetime.now(datetime.UTC)
life = datetime.timedelta(seconds=310)
issued = authority.issue_participant(folder.ensure_key().public_key(), ParticipantId("bank"), now=now, life=life)
folder.certificate_file.write_text(issued.chain_pem)
"""


# Several commands of both programs in one interpreter: the packages take a second to load each time.
BATCH = """
import contextlib, io, json, sys
from coordinator.__main__ import main as coordinator
from participant.__main__ import main as participant
outputs = []
for program, *words in json.load(sys.stdin):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = {"coordinator": coordinator, "participant": participant}[program](words)
    if code != 0:
        sys.exit(f"{program} {words} ended with {code}: {output.getvalue()}")
    outputs.append(output.getvalue())
print(json.dumps(outputs))
"""


class Lab:
    """Runs commands and keeps what came of them, by a name each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        self.log = (folder / "out" / "log.txt").open("w", buffering=1)

    def keep(self, **values: Any) -> None:
        self.results |= values
        self.log.write(f"{time.monotonic():.1f} {json.dumps(values)}\n")
        # Whatever happens next, the tests can say how far it came.
        (self.folder / "out" / "results.json").write_text(json.dumps(self.results))

    def run(
        self, *words: str, user: str = "", text: str = "", must_work: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = ["runuser", "-u", user, "--", *words] if user else list(words)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd="/")
        # What is asked again and again stays out of the log.
        if words[0] != "journalctl" and words[:2] != ("systemctl", "show"):
            self.log.write(
                f"{time.monotonic():.1f} $ {' '.join(words)}\n{done.stdout}{done.stderr}= {done.returncode}\n"
            )
        if must_work and done.returncode != 0:
            raise RuntimeError(f"{words} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done

    def guide(self, name: str) -> str:
        """Type a block of the operator's guide, where the package and the token lie."""
        text = json.loads((self.folder / "guide.json").read_text())[name]
        self.keep(guide=[*self.results.get("guide", []), name])
        command = ["bash", "-euo", "pipefail", "-c", f"cd {self.folder}\n{text}"]
        return self.run(*command).stdout

    def say(self, *words: str) -> str:
        return self.run(*words).stdout.strip()

    def coordinator(self, *commands: str) -> list[str]:
        """Outputs of accord-coordinator's commands, typed by its own user."""
        batch = [["coordinator", *command.split(), "--config", CONFIG] for command in commands]
        return self._batch(batch, user=COORDINATOR)

    def participant(self, *commands: str) -> list[str]:
        return self._batch([["participant", *command.split()] for command in commands])

    def _batch(self, batch: list[list[str]], *, user: str = "") -> list[str]:
        done = self.run("/opt/accord/bin/python", "-c", BATCH, user=user, text=json.dumps(batch))
        outputs: list[str] = json.loads(done.stdout.splitlines()[-1])
        return outputs

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        shown = self.say("systemctl", "show", name, *(f"--property={one}" for one in properties))
        return dict(line.split("=", 1) for line in shown.splitlines())

    def pid(self, name: str) -> int:
        return int(self.unit(name, "MainPID")["MainPID"])

    def restarts(self, name: str) -> int:
        return int(self.unit(name, "NRestarts")["NRestarts"])

    def until(self, what: str, is_so: Callable[[], Any]) -> Any:
        give_up = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < give_up:
            if found := is_so():
                self.log.write(f"{time.monotonic():.1f} {what}\n")
                return found
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"not within {WAIT_SECONDS:.0f} s: {what}")

    def until_up_again(self, name: str, before: int) -> None:
        self.until(
            f"{name} is up again",
            lambda: self.restarts(name) > before and self.unit(name, "ActiveState")["ActiveState"] == "active",
        )

    def journal(self, name: str) -> list[dict[str, Any]]:
        lines = self.say("journalctl", "--unit", name, "--output=cat", "--no-pager").splitlines()
        events = []
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(event := json.loads(line), dict):
                    events.append(event)
        return events

    def has_logged(self, name: str, event: str) -> bool:
        return any(one.get("event") == event for one in self.journal(name))


def install(lab: Lab) -> None:
    installed = lab.guide("install")
    # In the training package's place: what this checkout's environment has of torch.
    packages = next(Path("/opt/accord/lib").glob("python3*/site-packages"))
    (packages / "training.pth").write_text(f"{lab.folder / 'training'}\n")
    for name, text in DROP_IN.items():
        folder = Path("/run/systemd/system") / f"{name}.service.d"
        folder.mkdir(parents=True)
        (folder / "quick.conf").write_text(text)
    lab.run("systemctl", "daemon-reload")
    lab.keep(
        version=installed.splitlines()[-1],
        verified=lab.say("dpkg", "--verify", "accord"),
        analyzed=[
            lab.run("systemd-analyze", "verify", f"/lib/systemd/system/{name}.service", must_work=False).stderr
            for name in (BANK, COORDINATOR)
        ],
        enabled=[lab.run("systemctl", "is-enabled", n, must_work=False).stdout.strip() for n in (BANK, COORDINATOR)],
    )


def found_federation(lab: Lab) -> None:
    """A coordinator as a unit, and three sites: one as a unit, two beside it."""
    lab.run("accord-coordinator", "init", "--config", CONFIG, "--federation", "lab", "--host", "127.0.0.1",
            "--data-folder", "/var/lib/accord-coordinator")  # fmt: skip
    lab.run("chown", "--recursive", "accord-coordinator:", "/var/lib/accord-coordinator")
    lab.run("systemctl", "start", COORDINATOR)
    lab.keep(coordinator_started=lab.unit(COORDINATOR, "ActiveState", "SubState", "StatusText"))

    # The unit's site enrols by a credential, and is then held back: nobody has pinned a charter.
    state = "/var/lib/accord-coordinator"
    lab.coordinator(*(f"token create {name} --out {state}/{name}.token" for name in ("bank", *OTHERS)))
    lab.run("mv", f"{state}/bank.token", str(lab.folder))
    lab.guide("unattended")
    lab.guide("configure")
    lab.run("mkdir", "--parents", "/srv/models", "/srv/accord")
    lab.run("cp", "--recursive", str(lab.folder / "model"), "/srv/models/tiny")
    lab.run("cp", str(lab.folder / "train.jsonl"), "/srv/accord")
    lab.guide("rights")
    for name in ("participant.toml", "policy.toml"):
        Path("/etc/accord", name).write_text((lab.folder / "bank" / name).read_text())
    refused = lab.run("systemctl", "start", BANK, must_work=False)
    lab.keep(
        unpinned_start=refused.returncode,
        unpinned=lab.unit(BANK, "ActiveState", "Result", "ExecMainStatus", "NRestarts"),
        unpinned_log=lab.say("journalctl", "--unit", BANK, "--output=cat", "--no-pager"),
    )
    for name in OTHERS:
        lab.run("cp", "--recursive", str(lab.folder / name), f"/srv/{name}")
    lab.participant(
        *(f"enroll --config /srv/{name}/participant.toml --token-file {state}/{name}.token" for name in OTHERS)
    )
    drafted = f"{state}/charter.json"
    *_, shown = lab.coordinator(
        f"charter draft bank {' '.join(OTHERS)} --out {drafted}", f"charter publish {drafted}", "charter show --json"
    )
    digest = json.loads(shown)["digest"]
    lab.guide("pin")
    lab.participant(*(f"charter pin --config /srv/{name}/participant.toml --digest {digest}" for name in OTHERS))
    for folder in ("/etc/accord", *(f"/srv/{name}" for name in OTHERS)):
        config = Path(folder, "participant.toml")
        config.write_text(config.read_text().replace("[charter]", f'[charter]\ndigest = "{digest}"'))
    lab.guide("check")
    lab.run("/opt/accord/bin/python", "-c", AGED_CERTIFICATE)


def start_sites(lab: Lab) -> None:
    lab.guide("start")
    pid = lab.pid(BANK)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    lab.keep(
        site_started=lab.unit(BANK, "ActiveState", "SubState", "StatusText", "Result"),
        confined={name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapEff", "Uid")},
        state_owner=lab.say("stat", "--format=%U:%a", "/var/lib/accord-participant"),
        key_mode=lab.say("stat", "--format=%U:%a", "/var/lib/accord-participant/identity/identity.key"),
        pre_check=lab.say("journalctl", "--unit", BANK, "--output=cat", "--no-pager"),
    )
    for name in OTHERS:
        command = ["accord-participant", "run", "--config", f"/srv/{name}/participant.toml"]
        lab.run("systemd-run", f"--unit={name}", "--quiet", *command)


def renew(lab: Lab) -> None:
    """The certificate is renewed while the process goes on."""
    pid = lab.pid(BANK)
    lab.until("the certificate is renewed", lambda: lab.has_logged(BANK, "certificate_renewed"))
    lab.keep(renewal={"before": pid, "after": lab.pid(BANK), "restarts": lab.restarts(BANK)})


def stand_still(lab: Lab) -> None:
    """A process that is there and does nothing: systemd hears no sign of life."""
    before = lab.restarts(BANK)
    os.kill(lab.pid(BANK), signal.SIGSTOP)
    lab.until_up_again(BANK, before)
    messages = lab.say("journalctl", "--unit", BANK, "--output=cat", "--no-pager", "_PID=1")
    lab.keep(watchdog_messages=messages)


def play_round(lab: Lab) -> None:
    """One run of one round; the site is killed while it trains, and the coordinator right after it."""
    model = lab.folder / "model.json"
    lab.coordinator(
        f"run create tuning --base-model {model} --rounds 1 --steps-per-round 4 --batch-size 2 --max-length 96 "
        "--rank 2 --start"
    )
    statuses: set[str] = set()

    def trains() -> bool:
        statuses.add(lab.unit(BANK, "StatusText")["StatusText"])
        return lab.has_logged(BANK, "run_joined") and any("round 1" in text for text in statuses)

    lab.until("the site prepares a round", trains)
    before = lab.restarts(BANK)
    os.kill(lab.pid(BANK), signal.SIGKILL)
    of_coordinator = lab.restarts(COORDINATOR)
    os.kill(lab.pid(COORDINATOR), signal.SIGKILL)
    lab.until_up_again(BANK, before)
    lab.until_up_again(COORDINATOR, of_coordinator)
    lab.keep(killed=True, statuses=sorted(statuses))

    before = lab.pid(BANK)
    release_a_version(lab, NEXT_VERSION)
    lab.guide("upgrade")
    states = [lab.unit(name, "ActiveState")["ActiveState"] for name in (BANK, COORDINATOR)]
    version = lab.say("accord-participant", "--version")
    lab.keep(upgraded={"before": before, "after": lab.pid(BANK), "states": states, "version": version})

    lab.until("the site has heard of it", lambda: lab.has_logged(BANK, "run_over"))
    run, rounds, participants = lab.coordinator(
        "run show tuning --json", "round list tuning --json", "participant list --json"
    )
    lab.keep(
        run=json.loads(run),
        rounds=json.loads(rounds),
        adapters=len(list(Path("/var/lib/accord-participant/adapters").glob("*/adapter_model.safetensors"))),
        participants=json.loads(participants),
    )


def release_a_version(lab: Lab, version: str) -> None:
    """Put the package of a later version in the place of the one that lies there: the same files by another name."""
    (package,) = lab.folder.glob("accord_*_amd64.deb")
    tree = lab.folder / "later"
    lab.run("dpkg-deb", "--raw-extract", str(package), str(tree))
    package.unlink()
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    (described,) = tree.glob("opt/accord/lib/python3*/site-packages/accord-*.dist-info")
    metadata = described / "METADATA"
    metadata.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", metadata.read_text(), count=1))
    described.rename(described.with_name(f"accord-{version}.dist-info"))
    (tree / "DEBIAN" / "md5sums").unlink()
    name = str(lab.folder / f"accord_{version}_amd64.deb")
    lab.run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), name)
    lab.run("rm", "-r", str(tree))


def reload_move_and_stop(lab: Lab) -> None:
    policy = Path("/etc/accord/policy.toml")
    pid, text = lab.pid(BANK), policy.read_text()
    policy.write_text(text + "\nnonsense = 1\n")
    refused = lab.run("systemctl", "reload", BANK, must_work=False).returncode
    policy.write_text(text)
    lab.guide("reload")
    lab.until("the files are read again", lambda: lab.has_logged(BANK, "configuration_to_be_read_again"))
    lab.until("ready again", lambda: lab.unit(BANK, "ActiveState")["ActiveState"] == "active")
    lab.keep(reload={"broken": refused, "before": pid, "after": lab.pid(BANK)})
    lab.guide("look")

    lab.guide("pack")
    lab.run("rm", "--recursive", "/var/lib/accord-participant", "/etc/accord/participant.toml")
    lab.guide("unpack")
    status = lab.run("accord-participant", "status", "--json").stdout
    lab.keep(moved=lab.unit(BANK, "ActiveState", "StatusText"), moved_status=status)
    for name in (BANK, COORDINATOR):
        lab.run("systemctl", "stop", name)
    lab.keep(
        stopped={name: lab.unit(name, "ActiveState", "Result", "ExecMainStatus") for name in (BANK, COORDINATOR)},
        left_running=lab.run("pgrep", "--list-full", "--uid", "accord-participant", must_work=False).stdout,
    )


def purge(lab: Lab) -> None:
    lab.run("systemctl", "stop", *OTHERS, must_work=False)
    lab.guide("undo")
    words = ["find", "/opt", "/etc", "/usr/bin", "/usr/lib", "/lib/systemd", "/usr/share", "/var/lib", "/var/cache"]
    found = lab.say(*words, "-maxdepth", "3", "-iname", "*accord*", "-not", "-path", "*/dist-packages/*")
    key = Path("/var/lib/accord-participant/identity/identity.key")
    lab.keep(left=sorted(found.splitlines()), kept_key=key.exists())
    lab.guide("forget")
    lab.keep(forgotten=not key.exists())


STEPS = (install, found_federation, start_sites, renew, stand_still, play_round, reload_move_and_stop, purge)


def main(folder: Path) -> None:
    lab = Lab(folder)
    try:
        for step in (
            install,
            found_federation,
            start_sites,
            renew,
            stand_still,
            play_round,
            reload_move_and_stop,
            purge,
        ):
            lab.keep(step=step.__name__)
            step(lab)
        lab.keep(step="done")
    except Exception as error:
        lab.keep(error=f"{type(error).__name__}: {error}")
        for name in (BANK, COORDINATOR, *OTHERS):
            words = ["journalctl", "--unit", name, "--no-pager", "--lines=60"]
            lab.log.write(lab.run(*words, must_work=False).stdout)
        raise
    finally:
        subprocess.run(["systemctl", "poweroff", "--force"], check=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
