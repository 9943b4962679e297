"""What our decoder answers: the same quantities as `torch_models.answers`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from blue.hub.directory import load_decoder
from blue.models import decoder, decoding, encoder
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.sharding import AXES


def load(directory, **options):
    """A checkpoint's configuration and its parameters, on the host."""
    one = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    cfg, params = load_decoder(directory, one, **options)
    return cfg, jax.device_get(params)


@functools.partial(jax.jit, static_argnums=1)
def logprobs(params: Params, cfg: DecoderConfig, tokens: Any, mask: Any) -> Any:
    """Log-probabilities of every next token, [B T V]."""
    hidden = decoder.forward(params, cfg, tokens, mask)
    return jax.nn.log_softmax(hidden @ decoder.head(params).T)


@functools.partial(jax.jit, static_argnums=1, static_argnames="new_tokens")
def greedy(
    params: Params, cfg: DecoderConfig, tokens: Any, mask: Any, *, new_tokens: int
) -> Any:
    """The likeliest completions [B C], decoded with the cache."""
    params = decoding.unstack_layers(params)
    best = lambda hidden: jnp.argmax(hidden @ decoder.head(params).T, axis=-1)
    hidden, kept = decoding.prefill(params, cfg, tokens, mask)
    cache = decoding.init_cache(cfg, tokens.shape[0], 1, new_tokens)

    def step(carry: Any, slot: Any) -> Any:
        token, cache = carry  # [B 1]: a group of one
        hidden, cache = decoding.decode_step(
            params, cfg, token, slot, mask, kept, cache
        )
        return (best(hidden), cache), token

    first = (best(hidden)[:, None], cache)
    _, chosen = jax.lax.scan(step, first, jnp.arange(new_tokens))
    return chosen[:, :, 0].T


def answers(
    params: Params, cfg: DecoderConfig, tokens: Any, mask: Any, *, new_tokens: int
) -> dict[str, np.ndarray]:
    """Log-probabilities [B T V], embeddings [B D] and greedy completions [B C]."""
    params, tokens, mask = jax.tree.map(jnp.asarray, (params, tokens, mask))
    embed = jax.jit(encoder.embed, static_argnums=1)
    found = {
        "logprobs": logprobs(params, cfg, tokens, mask),
        "embeddings": embed(params, cfg, tokens, mask),
        "greedy": greedy(params, cfg, tokens, mask, new_tokens=new_tokens),
    }
    return jax.device_get(found)
