"""The chart's default manifest, played by podman in place of a cluster: three sites outside finish a round with it.

podman 4 knows Pods and claims and no StatefulSet, and waits twenty seconds for an init container; so the set's template
becomes two pods on one claim, one after the other. Image, commands, security, configuration and volume are the chart's.
"""

from __future__ import annotations

import copy
import json
import secrets
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
import yaml

from benchmarks.federation import CONFIG, POLICY, QUANTISATION_STEP, RANK, SITE, made_up_model
from benchmarks.made_up_site import BASE_MODEL_FILE
from common.secagg import choose_lanes, lane_limit
from demo.federation import Call, LocalFederation, free_ports
from tests.charts import COORDINATOR, manifests, of_kind, render
from tests.containers import Containers

SITES = ("bank", "clinic", "newsroom")
MOST_PARTICIPANTS = 10
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.5


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

    def wait_until_ready(self) -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.health}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > give_up:
                    raise AssertionError(self.containers.podman("logs", self.container)) from None
                time.sleep(POLL_SECONDS)

    def wait_for_success(self, run: str) -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while (found := json.loads(self.accord("run", "show", run, "--json")))["state"] != "succeeded":
            assert found["state"] in ("created", "running"), found
            assert time.monotonic() < give_up, found
            time.sleep(POLL_SECONDS)


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
@pytest.mark.timeout(600)
def test_three_sites_finish_a_round_with_the_pod_that_the_chart_renders(played, tmp_path):
    # No root, nothing to write to but the volume, and the admin API on the pod's loopback.
    assert played.exec("id", "-u").strip() == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        played.exec("touch", "/etc/accord-was-here")
    helm_test = (COORDINATOR / "files" / "answers.py").read_text()
    listeners = "127.0.0.1:8443 127.0.0.1:8444"
    answered = played.exec(
        "env", "ACCORD_HEALTH=http://127.0.0.1:8080", f"ACCORD_LISTENERS={listeners}", "python", "-c", helm_test
    )
    assert answered.count(": ok") == 4

    model = made_up_model(0.5)
    with LocalFederation(tmp_path, name="hospitals") as sites:
        for site in SITES:
            folder = sites.site_folder(site)
            folder.mkdir(parents=True)
            (folder / BASE_MODEL_FILE).write_text(model.to_json())
            (folder / "policy.toml").write_text(POLICY)
            sites.site_config(site).write_text(CONFIG.format(digest="0" * 64, level="info"))
        tokens = {site: played.accord("token", "create", site, "--json") for site in SITES}
        sites.commands(
            [
                Call(
                    "participant",
                    ("enroll", "--config", str(sites.site_config(site)), "--token-file", "-"),
                    text=json.loads(token)["token"],
                )
                for site, token in tokens.items()
            ]
        )
        played.accord("charter", "draft", *SITES, "--out", "/tmp/charter.json")
        digest = json.loads(played.accord("charter", "publish", "/tmp/charter.json", "--json"))["digest"]
        pins = [("charter", "pin", "--config", str(sites.site_config(site)), "--digest", digest) for site in SITES]
        sites.commands([Call("participant", words) for words in pins])
        for site in SITES:
            sites.site_config(site).write_text(CONFIG.format(digest=digest, level="info"))
            sites.start_site(site, SITE)
        played.exec("sh", "-c", "cat > /tmp/model.json", text=model.to_json())
        clip = QUANTISATION_STEP * lane_limit(choose_lanes(MOST_PARTICIPANTS), MOST_PARTICIPANTS)
        played.accord(
            "run", "create", "support", "--base-model", "/tmp/model.json", "--rounds", "1", "--rank", str(RANK),
            "--set", f"element_clip={clip}", "--set", f"most_participants={MOST_PARTICIPANTS}", "--start",
        )  # fmt: skip
        played.wait_for_success("support")
        survivors = json.loads(played.accord("round", "show", "support", "1", "--json"))
        assert survivors["state"] == "succeeded"

    # SIGTERM, as a rollout sends it: a clean end; and the next pod on the same volume is the same coordinator.
    played.containers.podman("pod", "stop", "--time", "30", played.name)
    code = played.containers.podman("inspect", "--format", "{{.State.ExitCode}}", played.container).strip()
    assert code == "0"
    played.containers.podman("pod", "start", played.name)
    played.wait_until_ready()
    assert json.loads(played.accord("run", "show", "support", "--json"))["state"] == "succeeded"
