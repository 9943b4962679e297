"""Log-probabilities in chunks, without all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from blue.models.logprobs import token_logprobs


def random(key, *shape):
    rng = np.random.default_rng(key)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_chunked_logprobs_equal_full_logits_and_gradients():
    B, G, C, D, V = 2, 3, 7, 5, 11
    hidden, head = random(0, B, G, C, D), random(1, V, D)
    targets = jax.random.randint(jax.random.key(2), (B, G, C), 0, V)

    def full(hidden, head):
        lp = jax.nn.log_softmax(hidden @ head.T / 0.7)
        chosen = jnp.take_along_axis(lp, targets[..., None], -1)[..., 0]
        return chosen, -(jnp.exp(lp) * lp).sum(-1)

    # as if a loss weighed every log-probability and entropy otherwise
    by = [random(8 + n, B, G, C) for n in range(2)]

    def with_gradients(function):
        def total(hidden, head):
            out = function(hidden, head)
            return sum((a * b).sum() for a, b in zip(out, by, strict=True)), out

        grads, out = jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, head)
        return out, grads

    want, want_grads = with_gradients(full)
    for chunk in (1, 3, 7, 100):
        run = functools.partial(token_logprobs, temperature=0.7, chunk=chunk)
        got, grads = with_gradients(lambda h, w: run(h, targets, w))  # noqa: B023
        np.testing.assert_allclose(got.logprobs, want[0], atol=1e-5)
        np.testing.assert_allclose(got.entropy, want[1], atol=1e-5)
        close = lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5)
        jax.tree.map(close, grads, want_grads)


def test_no_array_of_all_tokens_times_the_vocabulary():
    B, G, C, D, V = 2, 2, 64, 4, 1024
    run = jax.grad(
        lambda h, w, t: token_logprobs(h, t, w, chunk=4).logprobs.sum(), (0, 1)
    )
    text = str(
        jax.make_jaxpr(run)(
            jnp.zeros((B, G, C, D)), jnp.zeros((V, D)), jnp.zeros((B, G, C), int)
        )
    )
    assert "f32[2,2,4,1024]" in text and "f32[2,2,64,1024]" not in text
