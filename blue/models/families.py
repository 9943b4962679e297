"""The decoders that BLUE knows by name."""

from blue.errors import UserError
from blue.models import gemma3, qwen3
from blue.models.decoder import DecoderConfig

PRESETS = (
    gemma3.gemma3_270m,
    gemma3.gemma3_1b,
    gemma3.gemma3_4b,
    gemma3.gemma3_12b,
    gemma3.gemma3_27b,
    gemma3.tiny_gemma3,
    qwen3.qwen3_0_6b,
    qwen3.qwen3_1_7b,
    qwen3.qwen3_4b,
    qwen3.qwen3_8b,
    qwen3.qwen3_14b,
    qwen3.qwen3_32b,
    qwen3.qwen3_embedding_0_6b,
    qwen3.qwen3_embedding_4b,
    qwen3.qwen3_embedding_8b,
    qwen3.tiny_qwen3,
)


def preset(name: str) -> DecoderConfig:
    """The configuration of a preset, by the name of its function."""
    known = {function.__name__: function for function in PRESETS}
    if name not in known:
        raise UserError(f"preset {name!r} is not known; known are {', '.join(known)}")
    return known[name]()
