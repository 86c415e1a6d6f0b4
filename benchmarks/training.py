"""Side by side with TRL's SFTTrainer or DPOTrainer: the same model, adapter, records, batches and steps, in one run.

    python -m benchmarks.training
    python -m benchmarks.training --data FOLDER --steps 20 --repetitions 3
    python -m benchmarks.training --objective dpo

Each side runs in a process of its own, one after the other, as often as asked; figures are medians. Accord's side is
its training process on a job as the daemon writes it. TRL is handed the same token rows in the same batches, which
Accord has already sorted by length, starts from the same adapter, and has TRL's defaults: loss on completions only,
bfloat16 where Accord computes in it; gradient checkpointing is off. The first step of each does not count.

tokens_per_second: tokens of prompts and answers, padding apart, by wall time; cpu_...: by the process's CPU time, which
holds on a busy machine too. peak_mib: of the whole process; a ratio over 1 is in Accord's favour. losses: of every
step, and held_out_loss after the last one, so that it shows if one side did less. Records are the demo's; --data takes
a folder with train.jsonl and test.jsonl. With a GPU (--device cuda) it has not been tried.

With --objective dpo the demo's records become pairs: the rejected answer is another record's. Losses are DPO's then,
and tokens those of both answers, each with its prompt.

TRL gets a venv of its own, below .tools, that shares this one's packages; --python takes another one. Prints one JSON
line. Exit code 3: TRL is not to be had here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from common.adapters import (
    ADAPTER_FILE,
    AdapterLayout,
    AdapterSpec,
    flatten,
    write_adapter_folder,
    write_initial_folder,
)
from common.basemodel import describe
from common.errors import AccordError
from common.instructions import chat_instruction_set
from common.methods import Method
from demo import domains
from demo.founding import prepare_model
from participant.training import data
from participant.training.batches import batches
from participant.training.job import (
    DataSettings,
    Device,
    EvaluationSettings,
    Hyperparameters,
    JobKind,
    Precision,
    Resources,
    TrainingJob,
    write_job,
)
from participant.training.process import run_worker
from participant.training.result import total_scores
from participant.training.tokens import Encoded, Encoder, encode_all, load_tokenizer

TRL_VERSION: Final = "1.16.0"
ROOT: Final = Path(__file__).resolve().parent.parent
DEFAULT_VENV: Final = ROOT / ".tools" / "trl"
TRL_SCRIPT: Final = ROOT / "benchmarks" / "peers" / "trl_training.py"
ACCORD_MODULE: Final = "benchmarks.peers.accord_training"
CACHE: Final = ROOT / ".cache" / "demo"
NOT_TO_BE_HAD: Final = 3
SPEC: Final = AdapterSpec(
    rank=8,
    alpha=16.0,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
SEED: Final = 1
DPO: Final = "dpo"
DPO_BETA: Final = 0.1
HELD_OUT_RECORDS: Final = 60


class TrlMissing(AccordError):
    """TRL cannot be installed or started here."""

    reason = "TRL_MISSING"


@dataclass(frozen=True, slots=True)
class Case:
    """What TRL's side is told. rows: of all batches, one after the other; answers: 1 where the loss counts.

    rejected_rows: of preference pairs, the rejected answers with their prompts; else none.
    """

    base_model: str
    adapter: str
    output: str
    rows: list[list[int]]
    answers: list[list[int]]
    rejected_rows: list[list[int]]
    dpo_beta: float
    batch_size: int
    steps: int
    learning_rate: float
    weight_decay: float
    max_gradient_norm: float
    max_length: int
    threads: int
    precision: str
    device: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One side's run, from the end of its first step on. tokens: of prompts and answers, padding apart."""

    tokens_per_second: float
    cpu_tokens_per_second: float
    peak_mib: float
    losses: tuple[float, ...]


def trl_python(chosen: Path | None) -> Path:
    """A Python that has trl: the chosen one, or that of our own venv, made where it is not there yet.

    Raises TrlMissing that says what was tried.
    """
    python = chosen or DEFAULT_VENV / "bin" / "python"
    if chosen is None and not _has_trl(python):
        venv.create(DEFAULT_VENV, with_pip=True)
        # Torch and all the rest as they are here, so that both sides run on the same; only what is missing is added.
        shared = sysconfig.get_path("purelib", vars={"base": str(DEFAULT_VENV), "platbase": str(DEFAULT_VENV)})
        (Path(shared) / "accord.pth").write_text(sysconfig.get_path("purelib") + "\n")
        constraints = ["-c", str(ROOT / "constraints" / "cpu.txt")]
        _run([str(python), "-m", "pip", "install", "--quiet", f"trl=={TRL_VERSION}", *constraints])
    if not _has_trl(python):
        raise TrlMissing(f"{python} cannot import trl; install it there, or leave --python out")
    return python


def _has_trl(python: Path) -> bool:
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", "import trl"], capture_output=True, check=False).returncode == 0


def _run(command: list[str], *, threads: int = 1) -> str:
    """What it prints. Raises TrlMissing with its last words."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if ran.returncode:
        raise TrlMissing(f"{' '.join(command[:4])} failed: {ran.stderr.strip()[-1000:]}")
    return ran.stdout


def write_records(folder: Path, source: Path | None, *, is_paired: bool) -> tuple[Path, Path]:
    """train.jsonl and test.jsonl: of a data folder, or of the demo's three sites one after the other.

    is_paired: as preference pairs; a data folder's are taken for such.
    """
    if source is not None:
        return source / "train.jsonl", source / "test.jsonl"
    sites = domains.built_in(CACHE / "records")
    train, held_out = folder / "train.jsonl", folder / "test.jsonl"
    form = paired if is_paired else "".join
    train.write_text("".join(form(site.train_path.read_text().splitlines(keepends=True)) for site in sites))
    held_out.write_text("".join(form(site.held_out_path.read_text().splitlines(keepends=True)) for site in sites))
    return train, held_out


def paired(lines: Sequence[str]) -> str:
    """Records of one task as pairs: rejected is the answer of the next record that has another one."""
    records = [json.loads(line) for line in lines]
    answers = [record["output"] for record in records]
    pairs: list[str] = []
    for place, record in enumerate(records):
        others = (other for other in answers[place + 1 :] + answers[:place] if other != record["output"])
        if (rejected := next(others, None)) is not None:
            question = {name: record[name] for name in ("instruction", "input") if name in record}
            pairs.append(json.dumps({**question, "chosen": record["output"], "rejected": rejected}) + "\n")
    return "".join(pairs)


def job_of(options: argparse.Namespace, folder: Path) -> TrainingJob:
    """The job, as the daemon would write it, and the files that it names."""
    model, base = prepare_model(CACHE, options.base_model)
    digest = write_initial_folder(folder / "first", model.layers, SPEC, seed=SEED, base_model_name=model.name)
    train, held_out = write_records(folder, options.data, is_paired=options.objective == DPO)
    return TrainingJob(
        kind=JobKind.TRAIN,
        base_model=base.folder.resolve(),
        base_model_digest=model.digest,
        global_adapter=folder / "first",
        global_adapter_digest=digest,
        adapter=SPEC,
        method=Method(),
        hyperparameters=Hyperparameters(
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            steps=options.steps,
            max_length=options.max_length,
            seed=SEED,
            dpo_beta=DPO_BETA if options.objective == DPO else 0.0,
        ),
        instruction_set=chat_instruction_set(),
        data=DataSettings(
            train_path=train.resolve(), held_out_path=held_out.resolve(), train_limit=options.batch_size * options.steps
        ),
        evaluation=EvaluationSettings(loss_records=0, ner_records=0),
        resources=Resources(
            threads=options.threads,
            device=Device(options.device),
            precision=Precision(options.precision),
            # As TRL has it: all rows of a batch at once, and a pair is two.
            micro_batch_size=options.batch_size * (2 if options.objective == DPO else 1),
            checkpoint_every_steps=0,
        ),
    )


def batches_of(job: TrainingJob) -> list[list[Encoded]]:
    """The records of every step, as the training loop draws them."""
    hyper = job.hyperparameters
    encoder = Encoder(load_tokenizer(job.base_model), job.instruction_set, max_length=hyper.max_length)
    encoded, _ = encode_all(encoder, data.load(job.data).train)
    drawn = batches(
        [len(record.ids) for record in encoded], [1.0] * len(encoded), batch_size=hyper.batch_size, seed=hyper.seed
    )
    return [[encoded[index] for index in indices] for indices in itertools.islice(drawn, hyper.steps)]


def tokens_of(record: Encoded) -> int:
    """Of prompt and answer; of a pair's both answers, each with its prompt."""
    return len(record.ids) + (len(record.rejected.ids) if record.rejected is not None else 0)


def case_of(job: TrainingJob, drawn: Sequence[Sequence[Encoded]], *, precision: str, output: Path) -> Case:
    hyper = job.hyperparameters
    records = [record for batch in drawn for record in batch]
    return Case(
        base_model=str(job.base_model),
        adapter=str(job.global_adapter),
        output=str(output),
        rows=[list(record.ids) for record in records],
        answers=[[int(flag) for flag in record.is_answer] for record in records],
        rejected_rows=[list(record.rejected.ids) for record in records if record.rejected is not None],
        dpo_beta=hyper.dpo_beta,
        batch_size=len(drawn[0]),
        steps=hyper.steps,
        learning_rate=hyper.learning_rate,
        weight_decay=hyper.weight_decay,
        max_gradient_norm=hyper.max_gradient_norm,
        max_length=hyper.max_length,
        threads=job.resources.threads,
        precision=precision,
        device=job.resources.device.value,
        seed=hyper.seed,
    )


def outcome_of(printed: str, tokens: Sequence[int]) -> tuple[Outcome, str]:
    """From a side's last line, and the tokens of every step; and the precision, where the side tells it."""
    told = json.loads(printed.splitlines()[-1])
    (wall, cpu), (wall_end, cpu_end) = told["times"][0], told["times"][-1]
    counted = sum(tokens[1:])
    found = Outcome(counted / (wall_end - wall), counted / (cpu_end - cpu), told["peak_mib"], tuple(told["losses"]))
    return found, str(told.get("precision", ""))


def held_out_loss(job: TrainingJob, folder: Path, adapter: Path, layout: AdapterLayout) -> float:
    """Nats per answer token of held-out records under a PEFT folder's adapter, by Accord's evaluation."""
    tensors = load_file(adapter / ADAPTER_FILE)
    flat = flatten({name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}, layout)
    digest = write_adapter_folder(folder / "adapter-in-layout", flat, layout, SPEC.peft_config("benchmark"))
    changes: dict[str, Any] = {
        "kind": JobKind.EVALUATE,
        "global_adapter": folder / "adapter-in-layout",
        "global_adapter_digest": digest,
        "evaluation": EvaluationSettings(loss_records=HELD_OUT_RECORDS, ner_records=0),
    }
    write_job(folder, replace(job, **changes))
    loss = total_scores(run_worker(folder, lambda progress: None).scores).mean_loss
    if loss is None:
        raise TrlMissing("the held-out records have no answers to judge by")
    return loss


def measure(options: argparse.Namespace, python: Path, folder: Path) -> dict[str, Any]:
    """Both sides, as often as asked, one after the other; medians, ratios and what they were measured at."""
    job = job_of(options, folder)
    drawn = batches_of(job)
    tokens = [sum(tokens_of(record) for record in batch) for batch in drawn]
    accord: list[Outcome] = []
    trl: list[Outcome] = []
    precision = ""
    for number in range(options.repetitions):
        ours, theirs = folder / f"accord-{number}", folder / f"trl-{number}"
        write_job(ours, job)
        found, precision = outcome_of(
            _run([sys.executable, "-m", ACCORD_MODULE, str(ours)], threads=options.threads), tokens
        )
        accord.append(found)
        theirs.mkdir()
        case = folder / "case.json"
        case.write_text(json.dumps(asdict(case_of(job, drawn, precision=precision, output=theirs))))
        trl.append(outcome_of(_run([str(python), str(TRL_SCRIPT), str(case)], threads=options.threads), tokens)[0])
    layout = SPEC.layout(describe(job.base_model).layers)
    last = options.repetitions - 1
    return {
        **compared(accord, trl),
        "losses": [round(loss, 4) for loss in accord[-1].losses],
        "trl_losses": [round(loss, 4) for loss in trl[-1].losses],
        "held_out_loss": round(held_out_loss(job, folder / "ours", folder / f"accord-{last}" / "adapter", layout), 4),
        "trl_held_out_loss": round(held_out_loss(job, folder / "theirs", folder / f"trl-{last}", layout), 4),
        "tokens": sum(tokens),
        "answer_tokens": sum(record.answer_tokens for batch in drawn for record in batch),
        "steps": options.steps,
        "batch_size": options.batch_size,
        "repetitions": options.repetitions,
        "objective": options.objective,
        "precision": precision,
        "threads": options.threads,
        "device": options.device,
        "data": "demo" if options.data is None else options.data.name,
    }


def compared(accord: Sequence[Outcome], trl: Sequence[Outcome]) -> dict[str, float]:
    """Medians of both; a ratio is over 1 where Accord is better: faster, or smaller."""

    def median(side: Sequence[Outcome], name: str) -> float:
        return statistics.median(float(getattr(outcome, name)) for outcome in side)

    return {
        "tokens_per_second": round(median(accord, "tokens_per_second"), 1),
        "trl_tokens_per_second": round(median(trl, "tokens_per_second"), 1),
        "speed_ratio": round(median(accord, "tokens_per_second") / median(trl, "tokens_per_second"), 2),
        "cpu_tokens_per_second": round(median(accord, "cpu_tokens_per_second"), 1),
        "trl_cpu_tokens_per_second": round(median(trl, "cpu_tokens_per_second"), 1),
        "cpu_speed_ratio": round(median(accord, "cpu_tokens_per_second") / median(trl, "cpu_tokens_per_second"), 2),
        "peak_mib": round(median(accord, "peak_mib")),
        "trl_peak_mib": round(median(trl, "peak_mib")),
        "peak_memory_ratio": round(median(trl, "peak_mib") / median(accord, "peak_mib"), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=["sft", DPO], default="sft")
    parser.add_argument("--data", type=Path, help="a folder with train.jsonl and test.jsonl; without it, the demo's")
    parser.add_argument("--base-model", type=Path, help="a safetensors folder or GGUF file; without it, the demo's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=[precision.value for precision in Precision], default="auto")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--python", type=Path, help="a Python that has trl")
    options = parser.parse_args()
    if options.steps < 2 or options.repetitions < 1 or options.batch_size < 1 or options.threads < 1:
        parser.error("at least two steps (the first does not count), one repetition, one record and one thread")
    try:
        python = trl_python(options.python)
        version = _run([str(python), "-c", "from importlib.metadata import version; print(version('trl'))"]).strip()
        with tempfile.TemporaryDirectory(prefix="accord-training-") as folder:
            figures = measure(options, python, Path(folder))
    except TrlMissing as error:
        print(f"TRL is not to be had here, so there is nothing to compare with: {error.message}", file=sys.stderr)
        return NOT_TO_BE_HAD
    print(json.dumps(figures | {"trl_version": version, "cores": os.cpu_count(), "load": os.getloadavg()[0]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
