"""How quick blob stores are with what a round does to them: segments of uploads, chunks read back, large adapters.

    python -m benchmarks.blobs --url file:///srv/accord/bench --url s3://accord-blobs/bench

A bucket is reached by the environment (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). What is written
is deleted again. Prints JSON: for each store MiB/s and CPU seconds of this process a GiB, by what was done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from coordinator.store.blobs import BlobStore
from coordinator.store.opening import open_blobs

MEBIBYTE: Final = 1 << 20
PREFIX: Final = "benchmark"
SEGMENT_CHUNKS: Final = 4

Figures = dict[str, dict[str, float]]


def measure(blobs: BlobStore, *, segments: int, streams: int, file_mebibytes: int) -> Figures:
    """segments: of 4 chunks of 1 MiB each, by as many threads as there are streams."""
    chunks = [os.urandom(MEBIBYTE) for _ in range(SEGMENT_CHUNKS)]
    keys = [f"{PREFIX}/uploads/{number:08d}" for number in range(segments)]
    found: Figures = {}
    try:
        with ThreadPoolExecutor(streams) as pool, tempfile.TemporaryDirectory() as folder:

            def read(key: str) -> None:
                for at in range(SEGMENT_CHUNKS):
                    blobs.read(key, at * MEBIBYTE, MEBIBYTE)

            size = segments * SEGMENT_CHUNKS
            found["put_segments"] = _timed(lambda: list(pool.map(lambda key: blobs.put(key, *chunks), keys)), size)
            found["read_chunks"] = _timed(lambda: list(pool.map(read, keys)), size)
            file, back = Path(folder) / "file", Path(folder) / "back"
            with file.open("wb") as out:
                for _ in range(file_mebibytes):
                    out.write(os.urandom(MEBIBYTE))
            found["put_file"] = _timed(lambda: blobs.put_file(f"{PREFIX}/file", file), file_mebibytes)
            found["fetch_file"] = _timed(lambda: blobs.fetch(f"{PREFIX}/file", back), file_mebibytes)
    finally:
        blobs.delete(PREFIX)
    return found


def _timed(work: Callable[[], object], mebibytes: int) -> dict[str, float]:
    started, cpu = time.monotonic(), time.process_time()
    work()
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return {
        "mebibytes": mebibytes,
        "mebibytes_per_second": round(mebibytes / seconds, 1),
        "cpu_seconds_per_gibibyte": round(cpu * 1024 / mebibytes, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blobs", description=__doc__)
    parser.add_argument("--url", action="append", required=True, help="a store; may be repeated")
    parser.add_argument("--segments", type=int, default=64, help="of 4 MiB each (default: 64)")
    parser.add_argument("--streams", type=int, default=4, help="how many at once (default: 4)")
    parser.add_argument("--file-mebibytes", type=int, default=128, help="size of the adapter (default: 128)")
    options = parser.parse_args()
    sizes = {"segments": options.segments, "streams": options.streams, "file_mebibytes": options.file_mebibytes}
    stores = {url: measure(open_blobs(url), **sizes) for url in options.url}
    json.dump({**sizes, "stores": stores}, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
