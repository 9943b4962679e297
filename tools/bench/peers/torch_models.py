"""transformers' and sentence-transformers' side: models at the sizes of measure.py."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from tools.bench import measure


def use_threads(cpus: str) -> None:
    """As many threads as there are cores."""
    torch.set_num_threads(len(cpus.split(",")))


def _fields(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["width"],
        "intermediate_size": sizes["mlp_width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_size"],
        "max_position_embeddings": 8192,
        "pad_token_id": measure.PAD,
        "eos_token_id": measure.END,
    }


def profiler(size: str) -> Any:
    """A random Gemma 3 in float32."""
    sizes = measure.SIZES[size]
    layers = range(1, sizes["layers"] + 1)
    kinds = ["sliding_attention" if n % 6 else "full_attention" for n in layers]
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **_fields(sizes),
        bos_token_id=measure.START,
        query_pre_attn_scalar=sizes["head_size"],
        sliding_window=sizes["window"],
        layer_types=kinds,
    )
    return Gemma3ForCausalLM(config).float()


def tokenizer(vocab: int, **options: Any) -> Any:
    """Each word is the number of its id."""
    pad, end, start, unknown = measure.SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=measure.word_level(vocab),
        pad_token=pad,
        eos_token=end,
        bos_token=start,
        unk_token=unknown,
        **options,
    )


def encoder(size: str, directory: str, most: int = 1024) -> Any:
    """A random SentenceTransformer of the Qwen3-Embedding kind in float32: last token,
    unit length. Written to `directory` on the way."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    sizes = measure.ENCODERS[size]
    torch.manual_seed(0)
    Qwen3Model(Qwen3Config(**_fields(sizes))).float().save_pretrained(directory)
    options = {"padding_side": "left", "model_max_length": most}
    tokenizer(sizes["vocab"], **options).save_pretrained(directory)
    parts = [
        modules.Transformer(directory),
        modules.Pooling(sizes["width"], pooling_mode="lasttoken"),
        modules.Normalize(),
    ]
    return SentenceTransformer(modules=parts, device="cpu")


def num_params(model: Any) -> float:
    """In millions."""
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
