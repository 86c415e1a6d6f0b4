"""A Llama in miniature, made in a second: real files, real tokenizer, chat template; for tests of what handles models.

Its answers are noise, and it can learn: hidden width 32, two layers, a byte-level vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.adapters import AdapterSpec, write_initial_folder
from common.basemodel import describe

TINY_SPEC: Final = AdapterSpec(
    rank=2,
    alpha=4.0,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
CONTROL_TOKENS: Final = ("<|end|>", "<|start|>", "<|stop|>")
# Like SmolLM2's: it adds a system message of its own where there is none.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|start|>system\nYou are tiny.<|stop|>\n' }}{% endif %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|stop|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
_CORPUS: Final = (
    "Name the colour of the thing. Which intent does this request have? List every Disease mention in the text, one "
    "per line. Write None if there is none. ### Instruction: ### Input: ### Response: user assistant system red blue "
    "green the a of in is and to apple sky leaf blood grass sea Disease: flu measles card lost balance transfer"
)


def make_tiny_model(folder: Path, *, seed: int = 0, layers: int = 2, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write a base model folder (safetensors, tokenizer, configuration) and return it. Same seed, same bytes."""
    tokenizer = make_tiny_tokenizer(chat_template=chat_template)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 320 tokens: any text goes in, and comes out again."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    end, start, stop = CONTROL_TOKENS
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=stop, pad_token=end, unk_token=end
    )
    wrapped.chat_template = chat_template
    return wrapped


def make_tiny_adapter(folder: Path, base_model: Path, *, seed: int = 0, spec: AdapterSpec = TINY_SPEC) -> str:
    """Write the first global adapter of a run for a base model; returns the digest of its weights."""
    return write_initial_folder(folder, describe(base_model).layers, spec, seed=seed, base_model_name="tiny")
