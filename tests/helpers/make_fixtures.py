"""Writes tests/fixtures: tiny random models of transformers and what they answer.

Needs the extra `parity`. From the repository's root:

    python -m tests.helpers.make_fixtures
"""

from pathlib import Path

import numpy as np

from tests.helpers import torch_models

LINEAR = {"rope_type": "linear", "factor": 8.0}
LENGTHS = [14, 9, 3]  # the window of the Gemma model is 5
NEW_TOKENS = 8


def main() -> None:
    """Three models: Gemma 3 with everything, Qwen3 tied and untied."""
    gemma3 = {"rope_scaling": LINEAR, "query_pre_attn_scalar": 24}
    models = {
        "gemma3": torch_models.random_gemma3(1, **gemma3),
        "qwen3": torch_models.random_qwen3(2, tie_word_embeddings=True, rope_theta=1e6),
        "qwen3_untied": torch_models.random_qwen3(
            3, tie_word_embeddings=False, rope_scaling=LINEAR
        ),
    }
    for name, model in models.items():
        directory = Path("tests/fixtures") / name
        torch_models.save(model, directory)
        tokens, mask = torch_models.batch(4, LENGTHS, model.config.vocab_size)
        answers = torch_models.answers(model, tokens, mask, new_tokens=NEW_TOKENS)
        np.savez(directory / "answers.npz", tokens=tokens, mask=mask, **answers)


if __name__ == "__main__":
    main()
