"""What masking costs: a participant's side and the coordinator's, each in a process of its own.

    python -m benchmarks.secagg --parameters 10000000 --participants 10 --dropouts 1
    python -m benchmarks.secagg --parameters 100000 1000000 --participants 3 10 --dropouts 0 30%
    python -m benchmarks.secagg --grid

Prints one JSON line a case; given several values, every case of them (`--grid`: 1e5 to 1e8 parameters, 3 to 1,000
participants, dropouts 0, 5 % and 30 %). `--dropouts` is a number or a percentage, of which at least one drops out.

Measured with the product's own code (`participant`, `coordinator`). Not measured here: gRPC (`benchmarks.round`), and
making and opening keys. Stood in for: keys and seeds (made up), and the other members (`benchmarks.masked_round`). At
most `--disk-gib` of uploads are on disk (`stored_uploads`); where more survive, each stands for several in the sum and
is read as often, and what receiving costs is multiplied. What a case needs is said before it begins (standard error),
and nothing begins where the disk has not got it.

CPU seconds hold on a busy machine where wall time does not. `opens_in_protocol`: whether the floors of the protocol let
a sum with so many dropouts be opened; what it would cost is measured all the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.masked_round import Case, delta_of, make_uploads, unmasking_of
from benchmarks.secagg.coordinator import measure_coordinator, small_case, small_folder, warm_case, warm_folder
from benchmarks.secagg.participant import measure_masking, measure_spooling
from common.adapters import FLOAT32_BYTES, create_adapter_file
from common.cores import usable_cores
from common.log import LogForm, configure
from common.memory import share_one_pool
from common.secagg import RoundKind

GIBIBYTE: Final = 1 << 30
LEAST_SURVIVORS: Final = 3
# As many members as the published bounds of the sparse graph go to.
MOST_PARTICIPANTS: Final = 1000
SPARE_BYTES: Final = GIBIBYTE
GRID_PARAMETERS: Final = (100_000, 1_000_000, 10_000_000, 100_000_000)
GRID_PARTICIPANTS: Final = (3, 10, 100, 1000)
GRID_DROPOUTS: Final = ("0", "5%", "30%")


def prepare(case: Case, folder: Path) -> None:
    """Everything that the measured processes find on disk: the others' uploads and this participant's adapters."""
    rounds = {folder: case, small_folder(folder): small_case(case), warm_folder(folder): warm_case(case)}
    for place, some in rounds.items():
        place.mkdir(exist_ok=True)
        make_uploads(some, place)
        index, layout = some.participants // 2, some.context().layout
        for name in ("base", "local"):
            mapped = create_adapter_file(place / name, some.adapter)
            if name == "local":
                for chunk in range(layout.lane_chunks):
                    start, stop = layout.parameters_in(chunk)
                    mapped[start:stop] = delta_of(index, chunk, stop - start)
            mapped.flush()


ROLES: Final[dict[str, Callable[[Case, Path], dict[str, Any] | None]]] = {
    "prepare": prepare,
    "spool-on-one-core": lambda case, folder: measure_spooling(case, folder, 1),
    "spool-on-all-cores": lambda case, folder: measure_spooling(case, folder, min(4, usable_cores())),
    "masking": lambda case, folder: measure_masking(case),
    "coordinator": measure_coordinator,
}


def run_role(role: str, case: Case, folder: Path) -> dict[str, Any]:
    """In a process of its own, with the same placement and no threads of BLAS."""
    numbers = (case.parameters, case.participants, case.dropouts, case.stored)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.secagg", "--role", role, "--folder", folder, "--case", *map(str, numbers)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """All roles, one after another."""
    run_role("prepare", case, folder)
    one, all_cores = (run_role(f"spool-on-{cores}", case, folder) for cores in ("one-core", "all-cores"))
    masking = run_role("masking", case, folder)
    coordinator = run_role("coordinator", case, folder)
    return {
        "parameters": case.parameters,
        "participants": case.participants,
        "dropouts": case.dropouts,
        "stored_uploads": len(case.uploaders),
        "lanes": case.plan.lanes,
        **masking,
        "upload_bytes_per_parameter": one["upload_bytes"] / case.parameters,
        "participant_extra_rss_mib": one["extra_rss_mib"],
        "participant_extra_rss_mib_all_cores": all_cores["extra_rss_mib"],
        "participant_spool_cpu_seconds": one["spool_cpu_seconds"],
        "participant_spool_seconds": one["spool_seconds"],
        "spool_speedup_all_cores": one["spool_seconds"] / all_cores["spool_seconds"],
        **coordinator,
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
    }


# --- what is asked for, and whether it fits -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Needs:
    """What a case takes. disk: bytes. streamed: bytes of masks that the coordinator takes off."""

    disk: int
    streamed: int

    @classmethod
    def of(cls, case: Case) -> Needs:
        context = case.context()
        upload = context.layout.bytes
        unmasking = unmasking_of(case, context)
        # Each upload as it arrives and as a blob, a spool; base, local and next adapter and the exact mean.
        disk = (2 * len(case.uploaders) + 1) * upload + 4 * case.parameters * FLOAT32_BYTES
        return cls(disk, (len(unmasking.added) + len(unmasking.subtracted)) * upload)


def cases_of(
    parameters: Sequence[int], participants: Sequence[int], dropouts: Sequence[str], *, disk_bytes: float
) -> list[Case]:
    """Every case once, those with the least parameters first. Raises ValueError that says which case is none.

    Where several were asked for, those of too few members for so many dropouts are left out.
    """
    found: dict[tuple[int, int, int], Case] = {}
    is_one = len(parameters) * len(participants) * len(dropouts) == 1
    for size, members, text in product(parameters, participants, dropouts):
        if size < 1 or not LEAST_SURVIVORS <= members <= MOST_PARTICIPANTS:
            raise ValueError(f"at least one parameter, and {LEAST_SURVIVORS} to {MOST_PARTICIPANTS} participants")
        gone = _dropouts(text, members)
        if gone > members - LEAST_SURVIVORS:
            if is_one:
                raise ValueError(f"--dropouts {text} of {members} leave fewer than {LEAST_SURVIVORS}")
            continue
        upload = Case(size, members, gone, stored=1).plan.layout(RoundKind.TRAINING, 1).bytes
        found[size, members, gone] = Case(size, members, gone, max(1, int(disk_bytes // (2 * upload))))
    if not found:
        raise ValueError("every case leaves fewer than three participants")
    return list(found.values())


def _dropouts(text: str, participants: int) -> int:
    """Raises ValueError unless it is a count or a percentage."""
    try:
        share, count = (float(text[:-1]), 0) if text.endswith("%") else (0.0, int(text))
    except ValueError:
        raise ValueError(f"--dropouts {text!r} is neither a number nor a percentage such as 5%") from None
    if not (0 <= share <= 100 and count >= 0):  # NaN is neither
        raise ValueError(f"--dropouts {text} is not possible")
    return max(1, round(participants * share / 100)) if share else count


def check_disk(needs: Sequence[Needs], folder: Path) -> None:
    """Say what the largest case takes. Raises ValueError that says what to do if the disk has not got it."""
    disk, free = max(need.disk for need in needs), shutil.disk_usage(folder).free
    streamed = sum(need.streamed for need in needs)
    print(
        f"{len(needs)} case{'s' * (len(needs) > 1)}: up to {disk / GIBIBYTE:.1f} GiB of disk below {folder} "
        f"({free / GIBIBYTE:.1f} are free); {streamed / GIBIBYTE:.0f} GiB of masks are to be taken off",
        file=sys.stderr,
    )
    if disk + SPARE_BYTES > free:
        raise ValueError(
            f"a case needs {disk / GIBIBYTE:.1f} GiB of disk and one to spare, {folder} has {free / GIBIBYTE:.1f}: "
            "name another place with --folder, or store fewer uploads with a smaller --disk-gib"
        )


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.secagg", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--participants", type=int, nargs="+", default=[10])
    parser.add_argument("--dropouts", nargs="+", default=["0"], help='a number, or a percentage such as "5%%"')
    parser.add_argument("--grid", action="store_true", help="all sizes, instead of the three above (about an hour)")
    parser.add_argument("--disk-gib", type=float, default=4.0, help="most of uploads on disk (4)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where they lie meanwhile")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        share_one_pool()  # as both services do before anything else
        configure(form=LogForm.JSON)  # on stderr: what a long round logs is no part of the figures
        print(json.dumps(ROLES[options.role](Case(*options.case), options.folder) or {}))
        return
    asked = (options.parameters, options.participants, options.dropouts)
    if options.grid:
        asked = (GRID_PARAMETERS, GRID_PARTICIPANTS, GRID_DROPOUTS)
    try:
        if not options.disk_gib > 0 or math.isinf(options.disk_gib):
            raise ValueError("--disk-gib is a number above zero")
        if not options.folder.is_dir():
            raise ValueError(f"--folder {options.folder} is not a folder")
        cases = cases_of(*asked, disk_bytes=options.disk_gib * GIBIBYTE)
        check_disk([Needs.of(case) for case in cases], options.folder)
    except ValueError as error:
        parser.error(str(error))
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="accord-bench-", dir=options.folder) as scratch:
            print(json.dumps(_rounded(measure(case, Path(scratch)))), flush=True)


if __name__ == "__main__":
    main()
