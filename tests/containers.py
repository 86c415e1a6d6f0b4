"""podman and buildah for tests: images built from the project's own Dockerfile, pods played from manifests.

Everything lies in a storage of its own below .cache, so that what was built is there for the next run, and a
developer's own containers are left alone. Nothing is pulled: tests/container_base.py stands in for the public base.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.container_base import make_base
from tests.programs import ROOT, debian_program

CACHE: Final = ROOT / ".cache" / "containers"
DOCKERFILE: Final = ROOT / "deploy" / "docker" / "Dockerfile"
# runc and cgroupfs: they also work where no systemd runs and a sandbox holds back some rights.
ENGINE: Final = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""
BUILD_SECONDS: Final = 900
# Of pip's settings on this machine: where packages come from. Others are the build's own.
PIP_SOURCES: Final = ("cert", "client-cert", "extra-index-url", "find-links", "index-url", "proxy", "trusted-host")


class CommandFailed(AssertionError):
    """podman or buildah ended with an error; the message has what it said."""


@dataclass(frozen=True, slots=True)
class Containers:
    """One storage, with the programs that work on it."""

    podman_program: Path
    buildah_program: Path
    folder: Path

    @classmethod
    def of_this_machine(cls) -> Containers:
        """Skips the test where a program is missing, or where root is needed and not given."""
        import pytest

        podman, buildah = debian_program("podman", package="podman"), debian_program("buildah", package="buildah")
        debian_program("runc", package="runc")
        debian_program("catatonit", package="catatonit")
        if os.geteuid() != 0:
            pytest.skip("containers with storage of their own are started by root here")
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "containers.conf").write_text(ENGINE)
        return cls(podman, buildah, CACHE)

    def podman(self, *words: str, text: str = "", seconds: float = 180) -> str:
        """What podman prints. Raises CommandFailed."""
        return self._run([str(self.podman_program), *self._storage(), *words], text=text, seconds=seconds)

    def logs(self, container: str) -> str:
        """What a container has printed, on either stream."""
        done = subprocess.run(
            [str(self.podman_program), *self._storage(), "logs", container],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=self._environment(),
        )
        return done.stdout

    def shim(self, name: str, container: str, folder: Path) -> Path:
        """A program `name` in a folder of its own: runs in the container what follows "--" in its arguments."""
        words = shlex.join([str(self.podman_program), *self._storage(), "exec", "--interactive", container])
        program = folder / name
        program.write_text(
            "#!/bin/sh\n"
            f"export CONTAINERS_CONF={shlex.quote(self._environment()['CONTAINERS_CONF'])}\n"
            'while [ "$1" != -- ]; do shift; done; shift\n'
            f'exec {words} "$@"\n'
        )
        program.chmod(0o755)
        return program

    def inspect(self, image: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.podman("image", "inspect", image))
        return found[0]

    def build(self, target: str) -> str:
        """The image of a target of the Dockerfile; quick where code and pins are those of the last one."""
        image = f"localhost/accord-{target}:test"
        # Where nothing is kept, keeping every step costs a quarter of the time and brings nothing.
        is_fresh = "CI" in os.environ
        # Two workers would build the same twice.
        with (self.folder / "build.lock").open("w") as lock, tempfile.TemporaryDirectory() as scratch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made_of = self._ensure_base(_context())
            if self._is_made(image, made_of):
                return image
            self._run(
                [
                    str(self.buildah_program), *self._storage(), "bud", "--quiet", "--pull-never",
                    f"--layers={not is_fresh}", "--isolation", "chroot", "--network", "host", "--format", "docker",
                    *_package_sources(Path(scratch)), "--file", str(DOCKERFILE), "--target", target, "--tag", image,
                    "--label", f"made-of={made_of}",
                    str(ROOT),
                ],
                seconds=BUILD_SECONDS,
            )  # fmt: skip
        return image

    @contextmanager
    def played(self, manifest: str, *, pods: Sequence[str], volumes: Sequence[str]) -> Iterator[None]:
        """The manifest's pods, until the end of the block; they also end with this process, however that ends.

        volumes: claims and ConfigMaps by name, which podman keeps as volumes; they go with the pods.
        """
        podman = [str(self.podman_program), *self._storage()]
        removals = [[*podman, "pod", "rm", "--force", "--time=5", "--ignore", *pods]]
        if volumes:
            removals.append([*podman, "volume", "rm", "--force", *volumes])
        # Reads until this process's end closes the pipe: containers are no children of ours.
        watch = subprocess.Popen(
            ["sh", "-c", f"cat > /dev/null; {'; '.join(map(shlex.join, removals))}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment(),
            start_new_session=True,
        )
        try:
            self.podman("kube", "play", "-", text=manifest)
            yield
        finally:
            watch.communicate(timeout=60)

    def _is_made(self, image: str, made_of: str) -> bool:
        found = self.podman("images", "--filter", f"label=made-of={made_of}", "--format", "{{.Repository}}:{{.Tag}}")
        return image in found.split()

    def _ensure_base(self, context: bytes) -> str:
        """Digest of the base and of `context`: what an image that is built on it is made of."""
        name = _base_name()
        made_of = hashlib.sha256(
            b"".join(
                [
                    (ROOT / "tests" / "container_base.py").read_bytes(),
                    Path("/var/lib/dpkg/status").read_bytes(),
                    sys.version.encode(),
                ]
            )
        ).hexdigest()
        whole = hashlib.sha256(made_of.encode() + context).hexdigest()
        if self._is_made(name, made_of):
            return whole
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            root = Path(scratch) / "root"
            root.mkdir()
            root.chmod(0o755)
            make_base(root)
            tar = Path(scratch) / "base.tar"
            subprocess.run(["tar", "--create", "--file", str(tar), "--directory", str(root), "."], check=True)
            changes = (
                "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"LABEL made-of={made_of}",
            )
            self.podman(
                "import", "--quiet", *(word for change in changes for word in ("--change", change)), str(tar), name
            )
        return whole

    def _storage(self) -> list[str]:
        return ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}

    def _run(self, command: Sequence[str], *, text: str = "", seconds: float = 180) -> str:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=ROOT,
            env=self._environment(),
        )
        if done.returncode != 0:
            what = " ".join(command)
            raise CommandFailed(f"{what} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout


def _context() -> bytes:
    """Digest of all that the builder is given."""
    rules = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    tops = [DOCKERFILE, *(ROOT / rule for rule in rules)]
    files = sorted(file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.digest()


def _base_name() -> str:
    lines = DOCKERFILE.read_text().splitlines()
    return next(line.removeprefix("ARG PYTHON_IMAGE=") for line in lines if line.startswith("ARG PYTHON_IMAGE="))


def _package_sources(folder: Path) -> list[str]:
    """Mounts with which pip in a build looks for packages where pip on this machine does."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    # Later lines win, and the environment counts more than any file.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in PIP_SOURCES:
            settings[key] = str(ast.literal_eval(value))
    folders = {Path("/etc/ssl/certs")}
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # An index in a folder refers to files beside it.
            folders.add(path.parent if word.startswith("file://") or path.is_file() else path)
    configuration = folder / "pip.conf"
    configuration.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    mounts = [f"{configuration}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(folders))]
    return [word for mount in mounts for word in ("--volume", mount)]
