"""`make sbom`: what the coordinator's image has in it, as CycloneDX: Debian's packages and Python's.

python -m tests.image_sbom FILE
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.containers import Containers
from tests.programs import tool


def main(file: Path) -> None:
    containers = Containers.of_this_machine()
    image = containers.build("coordinator")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "image.tar"
        containers.podman("save", "--quiet", "--format", "oci-archive", "--output", str(archive), image)
        subprocess.run(
            [tool("sbom", "syft"), "scan", f"oci-archive:{archive}", "--quiet", "--output", f"cyclonedx-json={file}"],
            check=True,
            env={**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false", "TMPDIR": scratch},
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
