"""`make check-chart`: checkov on what helm renders of every value file of the charts, and on the Dockerfile."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.charts import CHARTS, render
from tests.containers import DOCKERFILE
from tests.programs import tool

# What we do otherwise, and why.
SKIPPED: Final = {
    "CKV_K8S_8": "the pod of `helm test` and the job of migrations live for seconds, and need no liveness probe",
    "CKV_K8S_9": "the same for readiness",
    "CKV_K8S_11": "a limit of CPU only slows handshakes and sums down; requests say what is needed",
    "CKV_K8S_15": "tags are versions and never move, so nodes need not ask the registry at every start",
    "CKV_K8S_21": "the namespace is the release's, which helm names and a rendered manifest does not",
    "CKV_K8S_43": "image.digest pins the image, where an organisation wants that",
    "CKV2_K8S_6": "the pod of `helm test` has no listener",
    "CKV_DOCKER_7": "the base's exact version stands in an ARG, which checkov does not follow",
    "CKV_DOCKER_2": "Kubernetes' probes ask the service; a check inside of the image would be a second one",
}


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        for values in sorted(CHARTS.glob("*/ci/*-values.yaml")):
            chart = values.parents[1]
            (Path(scratch) / f"{chart.name}-{values.stem}.yaml").write_text(render("4", chart, files=[values]))
        checkov = [
            str(tool("checkov", "checkov")),
            "--skip-download",
            "--compact",
            "--quiet",
            "--skip-check",
            ",".join(SKIPPED),
        ]
        codes = [
            subprocess.run([*checkov, "--framework", "kubernetes", "--directory", scratch], check=False).returncode,
            subprocess.run([*checkov, "--framework", "dockerfile", "--file", str(DOCKERFILE)], check=False).returncode,
        ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
