"""The coordinator's image, built from the Dockerfile and looked at: small, without root, without torch."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests import image_sbom
from tests.containers import DOCKERFILE, Containers
from tests.programs import ROOT, tool

MOST_BYTES = 300_000_000
HARDENED = ("--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@pytest.fixture(scope="module")
def containers():
    return Containers.of_this_machine()


@pytest.fixture(scope="module")
def coordinator(containers):
    return containers.build("coordinator")


def python(containers, image, program):
    return containers.podman("run", "--rm", *HARDENED, "--entrypoint", "python", image, "-c", program)


def test_dockerfile_has_no_finding():
    done = subprocess.run([tool("kubernetes", "hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_base_is_pinned_to_an_exact_version():
    froms = [line.split()[1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("FROM ")]
    assert set(froms) == {"${PYTHON_IMAGE}", "scratch"}
    assert "ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm" in DOCKERFILE.read_text()


def test_nothing_is_sent_to_the_builder_but_what_images_are_made_of():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {
        "common", "constraints", "coordinator", "participant", "protos", "pyproject.toml", "README.md",
    }  # fmt: skip


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_coordinator_image_is_small_and_runs_without_root_and_without_torch(containers, coordinator):
    found = containers.inspect(coordinator)
    assert found["Size"] < MOST_BYTES
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "accord-coordinator"
    assert containers.podman("run", "--rm", *HARDENED, coordinator, "--version").startswith("accord-coordinator ")
    seen = json.loads(
        python(
            containers,
            coordinator,
            """
import importlib.util, json, os, sys
names = ("torch", "transformers", "pip", "setuptools")
writable = [f for f in ("/", "/etc", "/opt/accord", "/usr/local", "/var/lib") if os.access(f, os.W_OK)]
print(json.dumps({
    "uid": os.getuid(), "found": [n for n in names if importlib.util.find_spec(n)], "writable": writable,
    "init": open("/proc/1/comm").read().strip(),
}))""",
        )
    )
    assert seen == {"uid": 10001, "found": [], "writable": [], "init": "python"}


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_coordinator_image_has_the_pinned_packages_alone(containers, coordinator):
    listed = python(
        containers,
        coordinator,
        "from importlib.metadata import distributions as d\n"
        "print('\\n'.join(f'{p.name}=={p.version}' for p in d() if p.name != 'accord'))",
    )
    pins = {
        line.lower().replace("_", "-")
        for name in ("cpu.txt", "image.txt")
        for line in (ROOT / "constraints" / name).read_text().splitlines()
    }
    installed = {line.lower().replace("_", "-") for line in listed.split()}
    assert len(installed) > 15
    assert installed <= pins


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_a_signal_in_the_first_moment_ends_the_container(containers, coordinator):
    """Before the service has set its own handlers: process 1 would else not be ended by it."""
    name = containers.podman(
        "run", "--detach", *HARDENED, "--entrypoint", "dumb-init", coordinator, "--single-child", "--",
        "python", "-c", "import signal; signal.pause()",
    ).strip()  # fmt: skip
    try:
        containers.podman("stop", "--time", "20", name)
        code = containers.podman("inspect", "--format", "{{.State.ExitCode}}", name)
        assert int(code) == 128 + signal.SIGTERM
    finally:
        containers.podman("rm", "--force", "--time", "0", name)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_bill_of_materials_has_the_images_packages_and_their_versions(coordinator, tmp_path):
    file = tmp_path / "accord-coordinator.cdx.json"
    image_sbom.main(file)
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    found = {
        (part["purl"].split("/")[0], part["name"]): part["version"] for part in bill["components"] if "purl" in part
    }
    pins = dict(
        line.split("==") for line in (ROOT / "constraints" / "cpu.txt").read_text().splitlines() if "==" in line
    )
    assert found["pkg:pypi", "grpcio"] == pins["grpcio"]
    assert found["pkg:pypi", "cryptography"] == pins["cryptography"]
    assert ("pkg:deb", "libc6") in found
    assert not {name for _, name in found} & {"torch", "transformers"}
