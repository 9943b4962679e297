"""One decoder for all families: they differ in a handful of config fields.

Gemma 3, https://arxiv.org/abs/2503.19786; Qwen3, https://arxiv.org/abs/2505.09388.

B prompts  G completions a prompt  P prompt tokens  C completion tokens  T query tokens
S key tokens  V vocabulary  D width  F mlp width  N query heads  K key/value heads
R = N//K query heads a key/value head  H head size  L layers

A layer is one Linen module, `Block`; its attention is a function passed to it, from
attention.py. This gives two passes here, and two more over the same weights in
decoding.py:

* `forward`        one block of tokens, causal;
* `group_forward`  a prompt and its G completions: the prompt is computed once and its
                   keys and values serve all completions: P + G*C tokens in place of
                   G*(P + C), with the same gradients.

Prompts are right-aligned: padding comes first, position 0 is the first real token.
Parameters are a plain dict; those of the layers are stacked, [L, ...].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blue.models import splash
from blue.models.attention import (
    KV,
    Attend,
    causal_mask,
    group_attention,
    kernel_for,
    positions_of,
    prompt_attention,
    self_attention,
    splash_attention,
)
from blue.runtime.sharding import gather, keep_rows

Params = dict[str, Any]
LOCAL, GLOBAL = "local", "global"


class Lora(NamedTuple):
    """Low-rank adapters beside some matrices; functions on them are in models/lora.py.

    LoRA, https://arxiv.org/abs/2106.09685, equation 3: x W + alpha / rank (x A) B.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]  # names of our matrices: q k v o gate up down

    def scale(self) -> float:
        """Factor of the low-rank product."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder and everything in which families differ."""

    family: str  # key of models/families.py; changes no number
    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    pattern: tuple[str, ...] = (GLOBAL,)  # kinds of layers, repeated
    window: int = 0  # a local layer sees keys fewer positions back than this
    rope_theta: float = 1e6
    rope_theta_local: float = 1e4
    rope_factor: float = 1.0  # linear scaling of global layers' positions
    norm_eps: float = 1e-6
    norm_plus_one: bool = False  # the norm's weight is stored minus one
    qk_norms: bool = True  # norms of queries and keys, before RoPE
    post_norms: bool = False  # norms after attention and mlp, too
    activation: str = "silu"  # or gelu (tanh)
    scale_embedding: bool = False  # inputs times sqrt(D)
    query_scale: float = 0.0  # of q.k; 0: head_size ** -0.5
    tied: bool = True  # the head is the embedding
    lora: Lora | None = None  # adapters among the parameters

    def kind(self, layer: int) -> str:
        """Kind of one layer, "local" or "global"."""
        return self.pattern[layer % len(self.pattern)]

    def scale(self) -> float:
        """Factor of the attention logits."""
        return self.query_scale or self.head_size**-0.5


# --- the layer


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... X"]) -> Float[Array, "... X"]:
        """`x` divided by its root mean square, times the weight; in the dtype of
        `x`."""
        offset = 1.0 if self.cfg.norm_plus_one else 0.0
        init = nn.initializers.constant(1.0 - offset)
        weight = self.param("weight", init, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(
            jnp.mean(y * y, axis=-1, keepdims=True) + self.cfg.norm_eps
        )
        y = y * (offset + weight.astype(jnp.float32)).reshape(
            (1,) * (x.ndim - 1) + (-1,)
        )
        return y.astype(x.dtype)


def rope(
    x: Float[Array, "B T A H"],
    positions: Int[Array, "B T"],
    *,
    theta: float,
    factor: float,
) -> Float[Array, "B T A H"]:
    """Rotary position embedding, halves convention (as the released checkpoints)."""
    half = x.shape[-1] // 2
    inverse = theta ** -(jnp.arange(half, dtype=jnp.float32) / half) / factor
    angle = (
        positions[..., None, None].astype(jnp.float32) * inverse[None, None, None, :]
    )
    sin, cos = jnp.sin(angle), jnp.cos(angle)  # [B T 1 H/2]
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    y = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return y.astype(x.dtype)


class Block(nn.Module):
    """One layer. The caller provides attention: see `Attend`."""

    cfg: DecoderConfig
    kind: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], attend: Attend
    ) -> tuple[Float[Array, "B #T D"], Any]:  # noqa: F821
        """The layer's output, and what `attend` keeps."""
        cfg = self.cfg
        D, N, K, H = cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_size
        F, residual = cfg.mlp_width, (2 * cfg.num_layers) ** -0.5

        def norm(name: str, y: Array) -> Array:
            return RMSNorm(cfg, name=name)(y)

        def project(
            name: str,
            letters: str,
            y: Array,
            shape: tuple[int, ...],
            inputs: int = 1,  # leading axes of the matrix
            gain: float = 1.0,
        ) -> Array:
            init, std = nn.initializers.normal, math.prod(shape[:inputs]) ** -0.5
            weight = self.param(name, init(gain * std), shape)
            out = jnp.einsum(letters, y, weight.astype(x.dtype))
            if cfg.lora is None or name not in cfg.lora.targets:
                return out
            r, zeros = cfg.lora.rank, nn.initializers.zeros
            a = self.param(f"{name}_a", init(std), (*shape[:inputs], r))
            b = self.param(f"{name}_b", zeros, (r, *shape[inputs:]))
            # never A B: it and its gradient would be as large as the matrix
            low = jnp.tensordot(y, a.astype(x.dtype), inputs)  # [B T r]
            return out + cfg.lora.scale() * jnp.tensordot(low, b.astype(x.dtype), 1)

        theta = cfg.rope_theta if self.kind == GLOBAL else cfg.rope_theta_local
        factor = cfg.rope_factor if self.kind == GLOBAL else 1.0
        y = norm("attention_norm", x)
        q = project("q", "BTD,DNH->BTNH", y, (D, N, H))
        k = project("k", "BTD,DKH->BTKH", y, (D, K, H))
        v = project("v", "BTD,DKH->BTKH", y, (D, K, H))
        if cfg.qk_norms:
            q, k = norm("q_norm", q), norm("k_norm", k)
        q = rope(q, positions, theta=theta, factor=factor)
        k = rope(k, positions, theta=theta, factor=factor)
        y, kept = attend(q, KV(k, v))
        y = project("o", "BTNH,NHD->BTD", y, (N, H, D), inputs=2, gain=residual)
        x = x[:, -y.shape[1] :]
        x = x + (norm("post_attention_norm", y) if cfg.post_norms else y)

        y = norm("mlp_norm", x)
        gate = project("gate", "BTD,DF->BTF", y, (D, F))
        up = project("up", "BTD,DF->BTF", y, (D, F))
        act = jax.nn.silu if cfg.activation == "silu" else jax.nn.gelu
        y = project("down", "BTF,FD->BTD", act(gate) * up, (F, D), gain=residual)
        return x + (norm("post_mlp_norm", y) if cfg.post_norms else y), kept


# --- the trunk


def init_params(cfg: DecoderConfig, key: Array, dtype: str = "float32") -> Params:
    """Random parameters.

    Adapters are float32 for every `dtype`, because steps on them are small.
    """
    layer_key, embed_key, head_key = jax.random.split(key, 3)
    x, positions = jnp.zeros((1, 1, cfg.width)), jnp.zeros((1, 1), jnp.int32)
    attend = self_attention(jnp.ones((1, 1, 1), bool), scale=cfg.scale())

    def init_layer(key: Array) -> Params:
        variables: Any = Block(cfg, GLOBAL).init(key, x, positions, attend)
        return variables["params"]

    # embeddings start small compared with what the layers add
    embed_std = 0.1 * (cfg.width**-0.5 if cfg.scale_embedding else 1.0)
    shape = (cfg.vocab_size, cfg.width)
    params: Params = {
        "embed": embed_std * jax.random.normal(embed_key, shape),
        "layers": jax.vmap(init_layer)(jax.random.split(layer_key, cfg.num_layers)),
        "final_norm": RMSNorm(cfg).init(head_key, x)["params"],
    }
    if not cfg.tied:
        params["head"] = cfg.width**-0.5 * jax.random.normal(head_key, shape)
    names = {f"{t}_{x}" for t in (cfg.lora.targets if cfg.lora else ()) for x in "ab"}
    adapters = {name: params["layers"][name] for name in names}
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    return params | {"layers": params["layers"] | adapters}


def gather_tables(params: Params, dtype: Any) -> Params:
    """Parameters with embedding and head gathered, once for all their uses."""
    names = [name for name in ("embed", "head") if name in params]
    return {**params, **gather({name: params[name] for name in names}, dtype)}


def head(params: Params) -> Float[Array, "V D"]:
    """The matrix that turns hidden states into logits."""
    return params["head"] if "head" in params else params["embed"]


def embed_tokens(
    params: Params, cfg: DecoderConfig, tokens: Int[Array, "*b"], dtype: Any
) -> Float[Array, "*b D"]:
    """Token embeddings in the dtype of the forward pass."""
    x = keep_rows(_look_up(params["embed"], tokens).astype(dtype))
    # the factor is rounded to the compute dtype, as in the released model
    return x * jnp.asarray(cfg.width**0.5, dtype) if cfg.scale_embedding else x


@jax.custom_vjp
def _look_up(table: Array, tokens: Array) -> Array:
    """Rows of a table. The gradient of a frequent token sums thousands of terms. It is
    summed in float32 for every dtype of the table and rounded once."""
    return table[tokens]


def _look_up_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, None]:
    table, tokens = kept
    summed = jnp.zeros(table.shape, jnp.float32).at[tokens].add(g.astype(jnp.float32))
    return summed.astype(table.dtype), None


_look_up.defvjp(
    lambda table, tokens: (table[tokens], (table, tokens)), _look_up_backward
)


def final_norm(params: Params, cfg: DecoderConfig, x: Array) -> Array:
    """The norm before the head."""
    norm = cast(Any, RMSNorm(cfg))  # the type of apply lacks that of __call__
    return norm.apply({"params": params["final_norm"]}, x)


def run_block(
    cfg: DecoderConfig,
    layer: Params,
    kind: str,
    x: Array,
    positions: Array,
    attend: Any,
) -> tuple[Array, Any]:
    """One layer with the given (unstacked) parameters."""
    block = cast(Any, Block(cfg, kind))
    return block.apply({"params": layer}, x, positions, attend)


def scan_layers(
    params: Params,
    cfg: DecoderConfig,
    carry: Any,
    body: Callable[[Any, Params, str], tuple[Any, Any]],
    *,
    dtype: Any,
    remat: str,
) -> tuple[Any, list[Any]]:
    """Runs body(carry, layer, kind) over the layers; returns carry and each layer's
    output.

    remat: what the backward pass recomputes. "layers": all inside layers; "attention":
    all but the products with weights; "": nothing.

    A layer's weights are gathered, in `dtype`, when it runs (with `remat` again in the
    backward pass), never those of all layers at once.

    It scans over whole periods of the pattern, so that each kind's window is static.
    Remaining layers, and models of one period, are unrolled.
    """
    period, layers = len(cfg.pattern), params["layers"]
    count = cfg.num_layers // period if cfg.num_layers >= 2 * period else 0
    kept: list[Any] = []

    def step(carry: Any, layer: Params, kind: str) -> tuple[Any, Any]:
        carry, out = body(keep_rows(carry), gather(layer, dtype), kind)
        return keep_rows(carry), out

    if remat:
        # Products with weights have no batch dimension, those of attention do.
        policies = jax.checkpoint_policies
        saved = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable,
            policies.save_only_these_names(splash.KEPT),
        )
        policy = saved if remat == "attention" else None
        step = jax.checkpoint(step, static_argnums=(2,), policy=policy)
    if count:
        split = lambda a: a[: count * period].reshape(count, period, *a.shape[1:])

        def one_period(carry: Any, stack: Params) -> tuple[Any, tuple]:
            outs = []
            for i, kind in enumerate(cfg.pattern):
                layer = jax.tree.map(lambda a: a[i], stack)  # noqa: B023
                carry, out = step(carry, layer, kind)
                outs.append(out)
            return carry, tuple(outs)

        carry, outs = jax.lax.scan(one_period, carry, jax.tree.map(split, layers))
        for n in range(count):
            kept.extend(jax.tree.map(lambda a: a[n], out) for out in outs)  # noqa: B023
    for n in range(count * period, cfg.num_layers):
        carry, out = step(carry, layer_params(params, n), cfg.kind(n))
        kept.append(out)
    return carry, kept


def layer_params(params: Params, layer: int) -> Params:
    """Parameters of one layer, from the stack."""
    return jax.tree.map(lambda a: a[layer], params["layers"])


def window_of(cfg: DecoderConfig, kind: str) -> int:
    """How far back a layer of this kind sees; 0: everything."""
    return cfg.window if kind == LOCAL else 0


def forward(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    dtype: Any = jnp.float32,
    remat: str = "",
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm, of right-aligned tokens."""
    positions = positions_of(mask)

    def body(x: Array, layer: Params, kind: str) -> tuple[Array, None]:
        window = window_of(cfg, kind)
        attend = prompt_attention(mask, scale=cfg.scale(), window=window)
        return run_block(cfg, layer, kind, x, positions, attend)[0], None

    x = embed_tokens(params, cfg, tokens, dtype)
    x, _ = scan_layers(params, cfg, x, body, dtype=dtype, remat=remat)
    return final_norm(params, cfg, x)


def group_forward(
    params: Params,
    cfg: DecoderConfig,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    completions: Int[Array, "B G C"],
    *,
    dtype: Any = jnp.float32,
    remat: str = "",
) -> Float[Array, "B G C D"]:
    """Hidden states that predict each completion token, the prompt computed once.

    Equal, gradients included, to `forward` over the prompt tiled G times: the state at
    [b, g, c] has seen the prompt and completions[b, g, :c].
    """
    (B, G, C), P = completions.shape, prompt.shape[1]
    inputs = completions[:, :, :-1]  # the last token predicts nothing
    at = positions_of(prompt_mask)
    own_at = jnp.arange(C - 1)
    flat_at = jnp.tile(at[:, -1:] + 1 + own_at[None], (1, G))  # [B G*(C-1)]

    def body(carry: tuple, layer: Params, kind: str) -> tuple[tuple, None]:
        x, y = carry
        scale, window = cfg.scale(), window_of(cfg, kind)
        attend = prompt_attention(prompt_mask, scale=scale, window=window)
        x, shared = run_block(cfg, layer, kind, x, at, attend)
        see_prompt = causal_mask(flat_at, at, window=window) & prompt_mask[:, None, :]
        see_own = causal_mask(own_at, own_at, window=window)[None, None]

        def attend_group(q: Array, kv: KV) -> tuple[Array, None]:
            groups = lambda a: a.reshape(B, G, C - 1, *a.shape[2:])
            q_groups, own = groups(q), KV(groups(kv.k), groups(kv.v))
            if kernel_for(q_groups, keys=P + C - 1) == "splash":
                real = jnp.ones((B, G, C - 1), bool)
                out = splash_attention(
                    q_groups, shared, own, prompt_mask, real, scale=scale, window=window
                )
            else:
                # completions see no prompt keys before the last window
                seen = slice(max(P - window + 1, 0) if window else 0, P)
                prompt_kv = KV(shared.k[:, seen], shared.v[:, seen])
                see = groups(see_prompt[:, :, seen])
                out = group_attention(
                    q_groups, prompt_kv, own, see, see_own, scale=scale
                )
            return out.reshape(q.shape), None

        y, _ = run_block(cfg, layer, kind, y, flat_at, attend_group)
        return (x, y), None

    x = embed_tokens(params, cfg, prompt, dtype)
    y = embed_tokens(params, cfg, inputs.reshape(B, -1), dtype)
    (x, y), _ = scan_layers(params, cfg, (x, y), body, dtype=dtype, remat=remat)
    last = jnp.broadcast_to(x[:, None, -1:], (B, G, 1, cfg.width))
    hidden = jnp.concatenate([last, y.reshape(B, G, C - 1, cfg.width)], axis=2)
    return final_norm(params, cfg, hidden)


def param_count(cfg: DecoderConfig) -> int:
    """Number of parameters, from shapes alone."""
    shapes = jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
