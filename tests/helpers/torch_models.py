"""Tiny random transformers models and what they answer, for the tests of parity."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def random_gemma3(seed: int, **fields: Any) -> PreTrainedModel:
    """Gemma 3: five local layers, a global one, and one more; a window of 5."""
    fields = {"num_hidden_layers": 7, "sliding_window": 5, **SIZES, **fields}
    return _randomize(Gemma3ForCausalLM(Gemma3TextConfig(**fields)), seed)


def random_gemma3_with_images(seed: int, **fields: Any) -> PreTrainedModel:
    """The same as the text tower of a model that sees images, too."""
    fields = {"num_hidden_layers": 7, "sliding_window": 5, **SIZES, **fields}
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sight |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=fields,
        vision_config=sight,
        mm_tokens_per_image=4,
        image_token_index=95,
        boi_token_index=94,
        eoi_token_index=93,
    )
    return _randomize(Gemma3ForConditionalGeneration(config), seed)


def random_qwen3(seed: int, **fields: Any) -> PreTrainedModel:
    """Qwen3 with two layers."""
    fields = {"num_hidden_layers": 2, **SIZES, **fields}
    return _randomize(Qwen3ForCausalLM(Qwen3Config(**fields)), seed)


def random_llama(seed: int, **fields: Any) -> PreTrainedModel:
    """Llama with two layers."""
    fields = {"num_hidden_layers": 2, **SIZES, **fields}
    return _randomize(LlamaForCausalLM(LlamaConfig(**fields)), seed)


def _randomize(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights under which everything matters.

    transformers' own initial values would hide errors: norms are all the same, and
    attention is nearly uniform.
    """
    model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                embeds = name.endswith("embed_tokens.weight")
                # small inputs, lest every token predict itself through a tied head
                parameter.copy_(noise * (0.1 if embeds else parameter.shape[1] ** -0.5))
    model.generation_config.eos_token_id = None  # completions of a fixed length
    return model.float().eval()


def batch(seed: int, lengths: list[int], vocab_size: int) -> tuple[Any, Any]:
    """Right-aligned random tokens [B T] and their mask; padding is 0."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    mask = np.arange(width)[None] >= width - np.array(lengths)[:, None]
    tokens = np.where(mask, rng.integers(3, vocab_size, mask.shape), 0)
    return tokens.astype(np.int32), mask


@torch.no_grad()
def answers(
    model: PreTrainedModel, tokens: Any, mask: Any, *, new_tokens: int
) -> dict[str, np.ndarray]:
    """Log-probabilities [B T V], embeddings [B D] and greedy completions [B C]."""
    ids, seen = torch.tensor(tokens).long(), torch.tensor(mask)
    positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": seen.long()}
    out = model(**inputs, position_ids=positions, output_hidden_states=True)
    last = out.hidden_states[-1][:, -1]
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
    return {
        "logprobs": out.logits.log_softmax(-1).numpy(),
        "embeddings": torch.nn.functional.normalize(last, dim=-1).numpy(),
        "greedy": greedy[:, tokens.shape[1] :].numpy(),
    }


def save(model: PreTrainedModel, directory: Path, **options: Any) -> None:
    """Writes config.json and safetensors, nothing else."""
    model.save_pretrained(directory, **options)
    (directory / "generation_config.json").unlink()
