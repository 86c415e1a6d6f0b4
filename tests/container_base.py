"""A stand-in for the public Python image where no registry can be asked: made of this Debian machine's own files.

    python -m tests.container_base FOLDER

Fills FOLDER with the packages that a slim image is made of, as dpkg has installed them here, and with the Python that
runs this, below /usr/local as in the public image. Nothing is downloaded. Works on Debian, for this machine alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

DPKG: Final = Path("/var/lib/dpkg")
# What the Dockerfile's own commands need, and Python's libraries; what these depend on comes with them.
PACKAGES: Final = (
    "base-files", "base-passwd", "bash", "ca-certificates", "coreutils", "dash", "findutils", "grep", "libbz2-1.0",
    "libc-bin", "libffi8", "liblzma5", "libncursesw6", "libreadline8", "libsqlite3-0", "libssl3", "libstdc++6",
    "libuuid1", "netbase", "passwd", "sed", "tar", "tzdata", "zlib1g",
)  # fmt: skip
LEFT_OUT: Final = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/")
# Links of Debian's merged /usr, which no package owns.
MERGED: Final = ("bin", "lib", "lib64", "sbin")
# Of the standard library: what an image does without.
UNUSED_MODULES: Final = ("test", "idlelib", "turtledemo", "site-packages", "dist-packages", "__pycache__", "config-*")
_FIELDS: Final = re.compile(r"^(\S+): (.*)$", re.MULTILINE)


def make_base(root: Path) -> None:
    """Fill an empty folder. Raises OSError or CalledProcessError where this machine is no Debian."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for folder in ("tmp", "var/tmp", "root", "proc", "sys", "dev", "run", "home", "srv"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    packages = with_what_they_need(PACKAGES, installed())
    copied = subprocess.run(
        ["tar", "--create", "--directory=/", "--no-recursion", "--ignore-failed-read", "--files-from=-"],
        input="\n".join(files_of(packages)).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,  # a file that an administrator has deleted
    )
    subprocess.run(
        ["tar", "--extract", "--keep-directory-symlink", "--directory", str(root)], input=copied.stdout, check=True
    )
    # Whoever looks for vulnerabilities, or writes a bill of materials, asks dpkg.
    (root / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
    known = [entry for entry in _paragraphs() if _FIELDS.findall(entry)[0][1] in packages]
    (root / "var/lib/dpkg/status").write_text("\n\n".join(known) + "\n")
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    (root / "etc/shadow").touch(mode=0o600)
    (root / "etc/gshadow").touch(mode=0o600)
    shutil.copytree("/etc/ssl/certs", root / "etc/ssl/certs", symlinks=True, dirs_exist_ok=True)
    _copy_python(root / "usr/local")
    subprocess.run(["ldconfig", "-r", str(root)], check=True)


def installed() -> Mapping[str, Mapping[str, str]]:
    """Fields of every installed package, by name and by what it provides."""
    found: dict[str, dict[str, str]] = {}
    for paragraph in _paragraphs():
        fields = dict(_FIELDS.findall(paragraph))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields
    provided = {
        name.split()[0]: fields
        for fields in found.values()
        for name in fields.get("Provides", "").split(",")
        if name.strip()
    }
    return {**provided, **found}


def _paragraphs() -> list[str]:
    return [paragraph for paragraph in (DPKG / "status").read_text().split("\n\n") if paragraph.strip()]


def with_what_they_need(names: Iterable[str], packages: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The packages and all that they depend on. Raises FileNotFoundError for one that is not installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in packages:
            raise FileNotFoundError(f"the Debian package {name} is not installed")
        fields = packages[name]
        if fields["Package"] in found:
            continue
        found.add(fields["Package"])
        for needed in ",".join((fields.get("Depends", ""), fields.get("Pre-Depends", ""))).split(","):
            choices = [re.split(r"[\s(:]", choice.strip())[0] for choice in needed.split("|")]
            waiting.extend([choice for choice in choices if choice in packages][:1])
    return sorted(found)


def files_of(packages: Iterable[str]) -> Iterator[str]:
    """Paths without the leading slash, below /usr where the merged /usr has them."""
    for package in packages:
        lists = [*(DPKG / "info").glob(f"{package}.list"), *(DPKG / "info").glob(f"{package}:*.list")]
        for line in lists[0].read_text().splitlines():
            path = line.strip("/.")
            if path.split("/")[0] in MERGED:
                path = f"usr/{path}"
            if path and not path.startswith(LEFT_OUT) and path not in LEFT_OUT:
                yield path


def _copy_python(prefix: Path) -> None:
    version = f"python{sysconfig.get_python_version()}"
    binary = prefix / "bin" / version
    binary.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(sys.base_prefix) / "bin" / version, binary)
    for name in ("python", "python3"):
        binary.with_name(name).symlink_to(version)
    library = prefix / "lib" / version
    shutil.copytree(
        sysconfig.get_path("stdlib"), library, symlinks=True, ignore=shutil.ignore_patterns(*UNUSED_MODULES)
    )
    for shared in Path(sysconfig.get_config_var("LIBDIR")).glob(f"lib{version}.so*"):
        shutil.copy(shared, prefix / "lib" / shared.name, follow_symlinks=False)
    if strip := shutil.which("strip"):
        # As in the public image, which has no debugging symbols.
        libraries = [*(prefix / "lib").glob("lib*.so.*"), *library.glob("lib-dynload/*.so")]
        subprocess.run([strip, "--strip-unneeded", *map(str, libraries)], check=True)
    import pip

    packages = library / "site-packages"
    shutil.copytree(Path(pip.__file__).parent, packages / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    command = binary.with_name("pip")
    command.write_text("#!/usr/local/bin/python\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n")
    command.chmod(0o755)


if __name__ == "__main__":
    make_base(Path(sys.argv[1]))
