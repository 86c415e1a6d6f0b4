"""A child process that takes the final adapter as anybody would: PeftModel.from_pretrained, then a few questions.

    python -m demo.example QUESTIONS.json ANSWERS.json

Each question is answered by the base model (adapter switched off) and by the tuned one, word by word as it would be
served: greedy, in the prompt's form of the run's instruction set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from common import jsonform
from common.instructions import InstructionSet, Task
from demo.figures import Example
from demo.questions import Answers, Question, Questions
from participant.training.data import Exchange, Record
from participant.training.tokens import Encoded, Encoder, TooLong, load_tokenizer


def answer(asked: Questions) -> Answers:
    """Load both models and answer everything."""
    torch.set_num_threads(asked.threads)
    base = AutoModelForCausalLM.from_pretrained(asked.base_model, local_files_only=True)
    tuned = PeftModel.from_pretrained(base, asked.adapter)
    tuned.eval()
    instruction_set = InstructionSet.from_json(asked.instruction_set)
    encoder = Encoder(load_tokenizer(Path(asked.base_model)), instruction_set, max_length=asked.max_length)
    found = [(question, _encoded(encoder, question)) for question in asked.questions]
    usable = [(question, encoded) for question, encoded in found if isinstance(encoded, Encoded)]
    if not usable:
        return Answers(())
    ids, mask = _left_padded([encoded.ids[: encoded.prompt_tokens] for _, encoded in usable], fill=encoder.end_id)
    with tuned.disable_adapter():
        before = _generate(tuned, encoder, ids, mask, asked.max_new_tokens)
    after = _generate(tuned, encoder, ids, mask, asked.max_new_tokens)
    return Answers(
        tuple(
            Example(question.domain, f"{question.instruction}\n{question.input}".strip(), question.output, old, new)
            for (question, _), old, new in zip(usable, before, after, strict=True)
        )
    )


def _encoded(encoder: Encoder, question: Question) -> Encoded | TooLong:
    content = Exchange(question.instruction, question.input, question.output)
    return encoder.encode(Record(1, question.domain, Task(question.task), content, digest=""))


def _left_padded(rows: Sequence[Sequence[int]], *, fill: int) -> tuple[Tensor, Tensor]:
    """int64[rows, longest] ids and mask: all prompts end in the last column, where generation goes on."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _generate(model: PeftModel, encoder: Encoder, ids: Tensor, mask: Tensor, max_new_tokens: int) -> list[str]:
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(encoder.stop_ids),
            pad_token_id=encoder.end_id,
        )
    answers = output[:, ids.shape[1] :].tolist()
    return [encoder.decode([token for token in row if token not in encoder.stop_ids]) for row in answers]


if __name__ == "__main__":
    questions = jsonform.decode(Path(sys.argv[1]).read_bytes(), Questions, what="the questions")
    Path(sys.argv[2]).write_text(jsonform.encode(answer(questions), Answers), encoding="utf-8")
