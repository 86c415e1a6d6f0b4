"""The participant's chart, played by podman in place of a cluster: the pod trains in rounds with two sites outside.

As with the coordinator's chart, podman takes the set's template as pods on one claim. Two things more are the test's:
podman 4.3 mounts no Secret, so the token's is a folder; and the pod is on this host's network, where all others are.
"""

from __future__ import annotations

import copy
import io
import secrets
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.basemodel import describe
from demo.federation import LocalFederation
from tests.charts import PARTICIPANT, manifests, of_kind, render
from tests.containers import Containers
from tests.site_files import POLICY, write_records
from tests.tiny_model import make_tiny_model

WAIT_SECONDS = 180.0
POLL_SECONDS = 0.5
POD_SITE = "newsroom"
SITES = ("bank", "clinic")
CONFIG = """
state_directory = "state"
policy_file = "policy.toml"
least_free_mebibytes = 1
base_models = [{{ source = "{model}" }}]
data = {{ train_file = "train.jsonl" }}
training = {{ threads = 1 }}
charter = {{ mode = "pinned", file = "charter.json", digest = "{digest}" }}
"""
RUN = {"rounds": 2, "steps_per_round": 2, "batch_size": 2, "max_length": 96, "rank": 2, "alpha": 4.0}


def as_pods(values: Path, *, name: str, join: Path, digest: str = "") -> tuple[str, str]:
    """What enrols (and pins), as a pod that ends; and the site's pod."""
    found = manifests(render("4", PARTICIPANT, f"charter.digest={digest}", files=[values]))
    (stateful,) = of_kind(found, "StatefulSet")
    (configuration,) = of_kind(found, "ConfigMap")
    spec: dict[str, Any] = copy.deepcopy(stateful["spec"]["template"]["spec"])
    spec["hostNetwork"] = True
    spec["containers"][0].pop("ports", None)  # a host's network has no mapping of ports
    spec["volumes"] = [
        *(volume for volume in spec["volumes"] if volume["name"] != "join"),
        {"name": "join", "hostPath": {"path": str(join)}},
        {"name": "state", "persistentVolumeClaim": {"claimName": f"{name}-state"}},
    ]
    first = {**copy.deepcopy(spec), "containers": spec.pop("initContainers"), "restartPolicy": "Never"}
    first.pop("initContainers")
    pod = {"apiVersion": "v1", "kind": "Pod"}
    prepare = {**pod, "metadata": {"name": f"{name}-first"}, "spec": first}
    work = {**pod, "metadata": {"name": name}, "spec": spec}
    return yaml.safe_dump_all([configuration, prepare]), yaml.safe_dump_all([configuration, work])


def fill(containers: Containers, volume: str, folder: Path) -> None:
    """Make a claim's volume with the folder's files, as somebody has brought them there: for everybody to read."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, arcname=".")
    archive = folder.with_suffix(".tar")
    archive.write_bytes(stream.getvalue())
    containers.podman("volume", "create", volume)
    containers.podman("volume", "import", volume, str(archive))


def until(federation: LocalFederation, reached: Callable[[Mapping[str, Any]], bool]) -> None:
    """Wait for something of the run, while no process ends."""
    give_up = time.monotonic() + WAIT_SECONDS
    while not reached(run := federation.admin.run("runs/local-news")):
        federation.require_running()
        assert run["state"] in ("created", "running"), run
        assert time.monotonic() < give_up, run
        time.sleep(POLL_SECONDS)


@pytest.mark.system
@pytest.mark.timeout(1800)
def test_a_site_of_the_chart_enrols_pins_and_trains_in_rounds_with_two_outside(tmp_path: Path) -> None:
    containers = Containers.of_this_machine()
    image = containers.build("participant")
    name = f"accord-{secrets.token_hex(4)}"
    model = make_tiny_model(tmp_path / "models" / "tiny")
    for place in (tmp_path / "records", tmp_path / "join"):
        place.mkdir()
    write_records(tmp_path / "records" / "train.jsonl")
    values = tmp_path / "values.yaml"
    values.write_text(
        yaml.safe_dump(
            {
                "fullnameOverride": name,
                "image": {"repository": image.partition(":")[0], "tag": image.partition(":")[2], "pullPolicy": "Never"},
                "joinToken": {"existingSecret": "join-token"},
                "policy": POLICY,
                "data": {"existingClaim": f"{name}-records"},
                "models": {"existingClaim": f"{name}-models", "sources": ["tiny"]},
                "config": {"least_free_mebibytes": 1, "training": {"threads": 1}},
            }
        )
    )
    volumes = [f"{name}-state", f"{name}-records", f"{name}-models"]
    with LocalFederation(tmp_path, name="press") as federation:
        federation.prepare_coordinator()
        federation.start_coordinator()
        for site in SITES:
            folder = federation.site_folder(site)
            folder.mkdir(parents=True)
            (folder / "policy.toml").write_text(POLICY)
            write_records(folder / "train.jsonl")
            federation.site_config(site).write_text(CONFIG.format(model=model, digest="0" * 64))
        federation.enroll(*SITES)
        token = federation.admin.create_join_token(POD_SITE, ttl_seconds=600)["token"]
        (tmp_path / "join" / "token").write_text(token)
        fill(containers, f"{name}-records", tmp_path / "records")
        fill(containers, f"{name}-models", tmp_path / "models")

        enrol, _ = as_pods(values, name=name, join=tmp_path / "join")
        try:
            with containers.played(enrol, pods=[f"{name}-first"], volumes=[name]):
                code = containers.podman("wait", f"{name}-first-enroll").strip()
                assert code == "0", containers.logs(f"{name}-first-enroll")
            (tmp_path / "join" / "token").unlink()  # used up
            digest = federation.publish_charter([*SITES, POD_SITE])
            for site in SITES:
                federation.site_config(site).write_text(CONFIG.format(model=model, digest=digest))
                federation.pin_charter(site, digest)
                federation.start_site(site)

            pin, work = as_pods(values, name=name, join=tmp_path / "join", digest=digest)
            with containers.played(pin, pods=[f"{name}-first"], volumes=[name]):
                code = containers.podman("wait", f"{name}-first-enroll").strip()
                assert code == "0", containers.logs(f"{name}-first-enroll")
            with containers.played(work, pods=[name], volumes=[name]):
                federation.admin.create_run("local-news", {**RUN, "base_model_json": describe(model).to_json()})
                try:
                    until(federation, lambda run: sum(member["joined"] for member in run["members"]) == 3)
                    federation.admin.start_run("runs/local-news")
                    until(federation, lambda run: run["state"] == "succeeded")
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{containers.logs(f'{name}-participant')}") from None
                survivors = federation.admin.round("runs/local-news/rounds/2")["survivors"]
                assert f"participants/{POD_SITE}" in survivors
        finally:
            containers.podman("volume", "rm", "--force", *volumes)
