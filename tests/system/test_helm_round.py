"""The chart's default manifest, played by podman in place of a cluster: three sites outside finish a round with it.

podman 4 knows Pods and claims and no StatefulSet, and waits twenty seconds for an init container; so the set's template
becomes two pods on one claim, one after the other. Image, commands, security, configuration and volume are the chart's.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from benchmarks.federation import CONFIG, POLICY, QUANTISATION_STEP, RANK, SITE, made_up_model
from benchmarks.made_up_site import BASE_MODEL_FILE
from common.secagg import choose_lanes, lane_limit
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY
from demo.federation import Call, LocalFederation
from demo.ports import free_ports
from tests.charts import COORDINATOR, documented, manifests, of_kind, render
from tests.containers import CommandFailed, Containers

SITES = ("bank", "clinic", "newsroom")
MOST_PARTICIPANTS = 10
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.5
# Each asking is a process of its own in the pod.
ASK_SECONDS = 2.0


@dataclass
class PlayedCoordinator:
    """The coordinator's pod, and `kubectl exec` into it by podman's means."""

    containers: Containers
    name: str
    health: str

    @property
    def container(self) -> str:
        return f"{self.name}-coordinator"

    def exec(self, *words: str, text: str = "") -> str:
        return self.containers.podman("exec", "--interactive", self.container, *words, text=text)

    def accord(self, *words: str) -> str:
        return self.exec("accord-coordinator", *words)

    def type(self, lines: str, *, folder: Path) -> None:
        """Run shell lines of the guide in a folder, with a `kubectl exec` that reaches this pod."""
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        self.containers.shim("kubectl", self.container, programs)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=folder,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"

    def wait_until_ready(self) -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.health}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > give_up:
                    raise AssertionError(self.containers.logs(self.container)) from None
                time.sleep(POLL_SECONDS)

    def wait_for_success(self, run: str) -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while (found := json.loads(self.accord("run", "show", run, "--json")))["state"] != "succeeded":
            assert found["state"] in ("created", "running"), found
            assert time.monotonic() < give_up, found
            time.sleep(ASK_SECONDS)


def as_pods(found, *, name, ports):
    """Of the chart's manifest: what prepares the volume, as a pod; and the coordinator's pod with what it needs."""
    (stateful,) = of_kind(found, "StatefulSet")
    template = stateful["spec"]["template"]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-data"},
        "spec": stateful["spec"]["volumeClaimTemplates"][0]["spec"],
    }
    spec = copy.deepcopy(template["spec"])
    spec["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": f"{name}-data"}})
    first = {**copy.deepcopy(spec), "containers": spec.pop("initContainers"), "restartPolicy": "Never"}
    first.pop("initContainers")
    for port in spec["containers"][0]["ports"]:
        port.update(hostPort=ports[port["name"]], hostIP="127.0.0.1")
    labels = template["metadata"]["labels"]
    (configuration,) = of_kind(found, "ConfigMap")
    pod = {"apiVersion": "v1", "kind": "Pod"}
    prepare = {**pod, "metadata": {"name": f"{name}-first", "labels": labels}, "spec": first}
    serve = {**pod, "metadata": {"name": name, "labels": labels}, "spec": spec}
    return yaml.safe_dump_all([configuration, claim, prepare]), yaml.safe_dump_all([configuration, serve])


@pytest.fixture
def played(tmp_path):
    containers = Containers.of_this_machine()
    image = containers.build("coordinator")
    name = f"accord-{secrets.token_hex(4)}"
    ports = dict(zip(("participants", "enrollment", "health"), free_ports(3), strict=True))
    text = render(
        "4",
        COORDINATOR,
        "federation=hospitals",
        f"participants.publicAddress=127.0.0.1:{ports['participants']}",
        f"enrollment.publicAddress=127.0.0.1:{ports['enrollment']}",
        f"image.repository={image.partition(':')[0]}",
        f"image.tag={image.partition(':')[2]}",
        "image.pullPolicy=Never",
        f"fullnameOverride={name}",
    )
    prepare, serve = as_pods(manifests(text), name=name, ports=ports)
    coordinator = PlayedCoordinator(containers, name, f"http://127.0.0.1:{ports['health']}")
    with containers.played(prepare, pods=[f"{name}-first"], volumes=[name, f"{name}-data"]):
        assert containers.podman("wait", f"{name}-first-init").strip() == "0"
        with containers.played(serve, pods=[name], volumes=[]):
            coordinator.wait_until_ready()
            yield coordinator


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_three_sites_finish_a_round_with_the_pod_that_the_chart_renders_by_the_commands_of_the_guide(played, tmp_path):
    # No root, nothing to write to but the volume, and the admin API on the pod's loopback.
    assert played.exec("id", "-u").strip() == "10001"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        played.exec("touch", "/etc/accord-was-here")
    answered = played.exec(
        "env", "ACCORD_HEALTH=http://127.0.0.1:8080", "ACCORD_LISTENERS=127.0.0.1:8443 127.0.0.1:8444",
        "python", "-c", (COORDINATOR / "files" / "answers.py").read_text(),
    )  # fmt: skip
    assert answered.count(": ok") == 4

    model = made_up_model(0.5)
    (tmp_path / "model.json").write_text(model.to_json())
    with LocalFederation(tmp_path, name="hospitals") as sites:
        for site in SITES:
            folder = sites.site_folder(site)
            folder.mkdir(parents=True)
            (folder / BASE_MODEL_FILE).write_text(model.to_json())
            (folder / "policy.toml").write_text(POLICY)
            sites.site_config(site).write_text(CONFIG.format(digest="0" * 64, level="info"))
        configs = {site: str(sites.site_config(site)) for site in SITES}
        played.type(documented("members"), folder=tmp_path)
        tokens = {site: str(tmp_path / f"{site}.token") for site in SITES}
        sites.commands(
            [Call("participant", ("enroll", "--config", configs[site], "--token-file", tokens[site])) for site in SITES]
        )
        played.type(documented("charter"), folder=tmp_path)
        digest = json.loads(played.accord("charter", "show", "--json"))["digest"]
        sites.commands(
            [Call("participant", ("charter", "pin", "--config", configs[site], "--digest", digest)) for site in SITES]
        )
        for site in SITES:
            sites.site_config(site).write_text(CONFIG.format(digest=digest, level="info"))
            sites.start_site(site, SITE)
        clip = QUANTISATION_STEP * lane_limit(choose_lanes(MOST_PARTICIPANTS), MOST_PARTICIPANTS)
        small = f"--rounds 1 --rank {RANK} --set element_clip={clip} --set most_participants={MOST_PARTICIPANTS}"
        played.type(documented("run").replace("--rounds 3", small), folder=tmp_path)
        played.wait_for_success("support")
        assert json.loads(played.accord("round", "show", "support", "1", "--json"))["state"] == "succeeded"

    played.type(documented("operator"), folder=tmp_path)
    assert all((tmp_path / name).exists() for name in (OPERATOR_CERTIFICATE, OPERATOR_KEY, OPERATOR_CA))

    # SIGTERM, as a rollout sends it: a clean end; and the next pod on the same volume is the same coordinator.
    played.containers.podman("pod", "stop", "--time", "30", played.name)
    code = played.containers.podman("inspect", "--format", "{{.State.ExitCode}}", played.container).strip()
    assert code == "0"
    played.containers.podman("pod", "start", played.name)
    played.wait_until_ready()
    assert json.loads(played.accord("run", "show", "support", "--json"))["state"] == "succeeded"
