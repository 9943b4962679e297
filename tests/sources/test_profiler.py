"""The profiler of a config: tied to the encoder, or not trained yet."""

import jax.numpy as jnp
import numpy as np
import pytest

from blue.errors import UserError
from blue.hub.model import Model
from blue.models import families
from blue.runtime.sharding import make_mesh, put, replicated
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler, tie_to_encoder
from blue.text.tokenizer import train_tokenizer
from configs import quickstart


@pytest.fixture(scope="module")
def tokenizers():
    return [train_tokenizer([line] * 9, vocab_size=512) for line in ("red", "blue")]


def model(preset, embed, tokenizer, dtype="float32"):
    cfg = families.preset(preset)
    placed = put(jnp.asarray(embed, dtype), replicated(make_mesh(1, -1, 1)))
    params = {"embed": placed, "final_norm": {}}
    return Model(cfg, params, tokenizer, preset, origin="its own")


def test_the_encoders_embeddings_at_the_profilers_scale(tokenizers):
    """Gemma 3 multiplies them by sqrt(width), 8 for 64: they are divided by it."""
    rows = np.arange(128, dtype=np.float32).reshape(2, 64)
    profiler = model("tiny_gemma3", np.zeros((2, 64)), tokenizers[0], "bfloat16")
    encoder = model("tiny_qwen3", rows, tokenizers[0])
    tied = tie_to_encoder(profiler, encoder)
    embed = tied.params["embed"]
    assert embed.dtype == jnp.bfloat16 and tied.origin == ""
    np.testing.assert_allclose(np.asarray(embed, np.float32), rows / 8, rtol=2**-8)
    assert tied.params["final_norm"] is profiler.params["final_norm"]
    assert not np.any(profiler.params["embed"])  # the start is left as it was
    plain = tie_to_encoder(
        model("tiny_qwen3", np.zeros((2, 64)), tokenizers[0]), encoder
    )
    np.testing.assert_array_equal(plain.params["embed"], rows)


def test_models_of_two_tokenizers_cannot_be_tied(tokenizers):
    one, other = (model("tiny_qwen3", np.zeros((2, 64)), t) for t in tokenizers)
    with pytest.raises(UserError, match="tie_to_encoder needs .* one width and token"):
        tie_to_encoder(one, other)


def test_there_is_no_trained_profiler_before_its_stage_has_finished(tmp_path):
    run = open_run(quickstart.get_config("tiny"), str(tmp_path))
    assert isinstance(run, Run) and load_profiler(run, "trained") is None
