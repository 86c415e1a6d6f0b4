"""One round of Flower's SecAgg+ with the functions that its client and its server run: time, bytes and memory.

Runs in a Python that has `flwr` and nothing of Accord, this folder apart; `python -m benchmarks.flower_secagg` starts
it, once for each side. The graph is complete, as Accord's is up to 128 members. Prints one JSON line.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.flower_clients import CLIP, EXAMPLES, MOD, clients_after_key_setup, common, mod

workflow: Any = importlib.import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")
compat: Any = importlib.import_module("flwr.compat.common.recorddict_compat")

TARGET = 1 << 22
REPEATS = 15


def threshold_of(clients: int) -> int:
    """Two thirds and one."""
    return 2 * clients // 3 + 1


def status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"the kernel does not tell {name}")


def begin_peak() -> int:
    """Forget the peak so far; KiB that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_kib("VmRSS")


def client_side(parameters: int, clients: int) -> dict[str, Any]:
    states, _, boxes = clients_after_key_setup(clients, threshold=threshold_of(clients), target_range=TARGET)
    values = np.random.default_rng(1).standard_normal(parameters, dtype=np.float32) * np.float32(CLIP / 5)
    update = common.ndarrays_to_parameters([values])

    def mask(peers: int) -> tuple[float, int]:
        state = states[1]
        state.threshold = 0
        some = {key: found[:peers] for key, found in boxes[1].items()}
        begun = time.process_time()
        answer = mod._collect_masked_vectors(state, some, EXAMPLES, update)
        return time.process_time() - begun, sum(map(len, answer["masked_params"]))

    # The least of a few runs, taken in turns: the first pays for pages that the others find, and the machine is shared.
    mask(1)
    before = begin_peak()
    pairs = [(mask(1), mask(clients - 1)) for _ in range(REPEATS)]
    peak = status_kib("VmHWM")
    (few, _), (many, size) = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    return {
        "mask_ns_per_parameter_peer": (many - few) / (clients - 2) / parameters * 1e9,
        "client_cpu_seconds": many,
        "upload_bytes_per_parameter": size / parameters,
        "participant_extra_rss_mib": (peak - before) / 1024,
    }


class Line:
    """A grid whose clients answer at once. uploads: the masked vector that every one of them sends."""

    def __init__(self, states: dict[int, Any], upload: list[bytes], fit: Any) -> None:
        self._states, self._upload, self._fit = states, upload, fit

    def send_and_receive(self, messages: list[Any], *, timeout: float | None = None) -> list[Any]:
        del timeout
        return [self._answer(message) for message in messages]

    def _answer(self, message: Any) -> Any:
        configs = message.content.config_records[mod.RECORD_KEY_CONFIGS]
        content = common.RecordDict()
        if configs["stage"] == "collect_masked_vectors":
            content = compat.fitres_to_recorddict(self._fit, keep_input=False)
            # Each client's message has bytes of its own, as it has when it comes over the network.
            answer = {"masked_params": [bytes(bytearray(part)) for part in self._upload]}
        else:
            answer = mod._unmask(self._states[message.metadata.dst_node_id], configs)
        content.config_records[mod.RECORD_KEY_CONFIGS] = common.ConfigRecord(answer)
        return common.Message(content, reply_to=message)


class NoStrategy:
    def aggregate_fit(self, *found: Any) -> tuple[None, dict[str, Any]]:
        del found
        return None, {}


class ServerContext:
    """The parts of the server's context that these two stages read."""

    def __init__(self) -> None:
        records = common.RecordDict()
        records.config_records[workflow.MAIN_CONFIGS_RECORD] = common.ConfigRecord({"current_round": 1})
        self.state = records
        self.strategy = NoStrategy()


def server_side(parameters: int, clients: int, dropouts: int) -> dict[str, Any]:
    """The stages in which a server collects and unmasks. The masked vectors are random words: it cannot tell."""
    states, public, boxes = clients_after_key_setup(clients, threshold=threshold_of(clients), target_range=TARGET)
    for node, state in states.items():
        none = common.ndarrays_to_parameters([np.zeros(1, dtype=np.float32)])
        mod._collect_masked_vectors(state, boxes[node], EXAMPLES, none)
    words = np.random.default_rng(1).integers(0, MOD, parameters, dtype=np.int64)
    upload = [common.ndarray_to_bytes(np.array([1])), common.ndarray_to_bytes(words)]
    del words
    status = common.Status(common.Code.OK, "")
    fit = common.FitRes(status, common.ndarrays_to_parameters([]), EXAMPLES, {})
    sampled, active = set(states), set(sorted(states)[dropouts:])
    state = workflow.WorkflowState(
        nid_to_proxies=dict.fromkeys(states),
        nid_to_fitins={node: common.RecordDict() for node in states},
        sampled_node_ids=sampled,
        active_node_ids=set(active),
        threshold=threshold_of(clients),
        clipping_range=CLIP,
        quantization_range=TARGET,
        mod_range=MOD,
        nid_to_neighbours={node: set(sampled) for node in states},
        nid_to_publickeys=public,
        forward_srcs={node: found["srcs"] for node, found in boxes.items()},
        forward_ciphertexts={node: found["ctxts"] for node, found in boxes.items()},
    )
    flow = workflow.SecAggPlusWorkflow(num_shares=clients, reconstruction_threshold=threshold_of(clients))
    # Flower's processes know their task and run from how they were started.
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    identity.task_id = identity.run_id = identity.node_id = 1
    line, context = Line(states, upload, fit), ServerContext()
    before, begun = begin_peak(), time.process_time()
    is_done = flow.collect_masked_vectors_stage(line, context, state) and flow.unmask_stage(line, context, state)
    spent, peak = time.process_time() - begun, status_kib("VmHWM")
    if not is_done:
        raise RuntimeError("Flower's server gave the round up")
    return {"coordinator_cpu_seconds": spent, "coordinator_extra_rss_mib": (peak - before) / 1024}


def main() -> None:
    logging.disable(logging.CRITICAL)
    side, parameters, clients, dropouts = sys.argv[1], *map(int, sys.argv[2:5])
    figures = client_side(parameters, clients) if side == "participant" else server_side(parameters, clients, dropouts)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
