"""FLOPs of one run of every program by formula: 2 a multiply-add, over all devices.

Matrix products are counted as XLA counts them. Attention is dense: whole padded squares
or parts of them (`dense_pairs`). With `tiles=True` long blocks use the TPU's kernel
(models/splash.py), which computes every tile that is partly visible. With `masked=True`
only visible pairs count (causal and window masks, no padding): the least that any
kernel must do.

Left out are norms, softmax, RoPE, the optimizer, and adapters' low-rank products. They
are 1 to 3% of a tiny model, and less of larger ones.

Letters as in models/decoder.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blue.models import splash
from blue.models.attention import visible_parts
from blue.models.decoder import DecoderConfig, window_of
from blue.models.decoding import kept_slots
from blue.runtime.shapes import Shapes


class Parts(NamedTuple):
    """FLOPs of a forward pass by part."""

    trunk: float  # products with the layers' matrices
    attention: float  # queries with keys, weights with values
    head: float
    kernels: float = 0.0  # attention by the TPU's kernel


# --- the pieces


def trunk(cfg: DecoderConfig, tokens: int) -> float:
    """All layers' matrices, for so many tokens."""
    heads = 2 * cfg.num_heads + 2 * cfg.num_kv_heads  # q and o; k and v
    return tokens * cfg.num_layers * 2.0 * cfg.width * heads * cfg.head_size + (
        3.0 * down(cfg, tokens)
    )


def down(cfg: DecoderConfig, tokens: int) -> float:
    """One of the three matrices of every layer's mlp."""
    return tokens * cfg.num_layers * 2.0 * cfg.width * cfg.mlp_width


def attention(
    cfg: DecoderConfig,
    queries: int,
    before: int = 0,
    pairs: Callable[[int, int, int], int] | None = None,
) -> float:
    """All layers' attention of one block of tokens, over the pairs that `pairs` counts.

    The block has `before` tokens before it. A query sees itself and all before it; in a
    local layer only those less than the window back. pairs: `visible_pairs`, or
    `tile_pairs`.
    """
    count = pairs or visible_pairs
    pair = 4.0 * cfg.num_heads * cfg.head_size
    kinds = [cfg.kind(n) for n in range(cfg.num_layers)]
    by_kind = {k: count(queries, before, window_of(cfg, k)) for k in set(kinds)}
    return pair * sum(by_kind[kind] for kind in kinds)


def visible_pairs(queries: int, before: int, window: int) -> int:
    """sum over t < queries of min(before + t + 1, window); `window` 0: no limit."""
    last = before + queries
    full = last if not window else min(last, max(before, window))
    ramp = (full * (full + 1) - before * (before + 1)) // 2  # before+1 .. full
    return ramp + (last - full) * window


def dense_pairs(queries: int, before: int, window: int) -> int:
    """`visible_pairs` as dense attention computes them: a block alone in parts,
    completions with everything that their first token sees."""
    if before:
        return queries * (min(before, window - 1 if window else before) + queries)
    parts = visible_parts(queries, queries, window)
    return sum((q.stop - q.start) * (k.stop - k.start) for q, k in parts)


def tile_pairs(queries: int, before: int, window: int) -> int:
    """`visible_pairs` in whole tiles: all tiles of padded blocks that are partly
    visible."""
    before, queries = splash.padded(before), splash.padded(queries)
    T = splash.Visible(before, 1, queries, window).tile
    tiles = 0
    for first in range(before, before + queries, T):  # query of a row of tiles
        oldest = max(0, first - window + 1) if window else 0
        tiles += first // T - oldest // T + 1
    return tiles * T * T


def head(cfg: DecoderConfig, positions: int) -> float:
    """Logits of so many positions."""
    return 2.0 * positions * cfg.width * cfg.vocab_size


def _attend(
    cfg: DecoderConfig,
    blocks: Sequence[tuple[int, int, int]],
    masked: bool,
    tiles: bool,
) -> tuple[float, float]:
    """Attention of blocks (rows, queries, tokens before them): XLA's, the kernel's."""
    dense = kernels = 0.0
    for rows, queries, before in blocks:
        if masked:
            dense += rows * attention(cfg, queries, before)
        elif tiles and splash.fits_tiles(cfg.head_size, queries, before + queries):
            kernels += rows * attention(cfg, queries, before, tile_pairs)
        else:
            dense += rows * attention(cfg, queries, before, dense_pairs)
    return dense, kernels


# --- programs


def prefill(
    cfg: DecoderConfig, shapes: Shapes, *, masked: bool = False, tiles: bool = False
) -> float:
    """Prompts' keys and values, and the last position's hidden state. The last layer
    has q, k and v of all positions, and the rest of one. The decode loop computes its
    logits."""
    B, P = shapes.batch, shapes.prompt
    before = dataclasses.replace(cfg, num_layers=cfg.num_layers - 1)
    heads = cfg.num_heads + 2 * cfg.num_kv_heads
    own = 2.0 * cfg.width * (cfg.num_heads * cfg.head_size + 3 * cfg.mlp_width)
    window = window_of(cfg, cfg.kind(cfg.num_layers - 1))
    seen = min(P, window or P)
    last = P * 2.0 * cfg.width * heads * cfg.head_size
    last += own + 4.0 * cfg.num_heads * cfg.head_size * seen
    return encode(before, B, P, masked=masked, tiles=tiles) + B * last


def decode_step(cfg: DecoderConfig, shapes: Shapes, *, masked: bool = False) -> float:
    """One token for all B G completions, over the caches; local layers keep a window.

    With `masked`, the mean of C steps.
    """
    B, P, G, C = shapes
    if masked:
        seen = B * G * attention(cfg, C, P) / C
    else:
        pair = 4.0 * cfg.num_heads * cfg.head_size
        seen = B * G * pair * (cached(cfg, P) + cached(cfg, C))
    return trunk(cfg, B * G) + seen + head(cfg, B * G)


def cached(cfg: DecoderConfig, length: int) -> int:
    """Slots that all layers together keep of `length` tokens."""
    kinds = (cfg.kind(n) for n in range(cfg.num_layers))
    return sum(kept_slots(cfg, kind, length) for kind in kinds)


def rollout(
    cfg: DecoderConfig,
    shapes: Shapes,
    *,
    steps: int = 0,
    masked: bool = False,
    tiles: bool = False,
) -> float:
    """Prefill, and `steps` decode steps (0: C)."""
    one = decode_step(cfg, shapes, masked=masked)
    steps = steps or shapes.completion
    return prefill(cfg, shapes, masked=masked, tiles=tiles) + steps * one


def group_parts(
    cfg: DecoderConfig,
    shapes: Shapes,
    *,
    chunk: int = 0,
    masked: bool = False,
    tiles: bool = False,
) -> Parts:
    """`decoder.group_forward` with log-probabilities.

    The prompt counts once, and all tokens of the completions except the last, which
    predicts nothing. The prompt's last layer is computed for all positions, though only
    the last is used: XLA does not separate it. The head goes through C in whole chunks
    of `chunk` positions (0: no chunks).
    """
    B, P, G, C = shapes
    positions = -(-C // min(chunk, C)) * min(chunk, C) if chunk else C
    own = B * G * (C - 1)
    blocks = [(B, P, 0), (B * G, C - 1, P)]
    dense, kernels = _attend(cfg, blocks, masked, tiles)
    return Parts(
        trunk=trunk(cfg, B * P + own),
        attention=dense,
        head=head(cfg, B * G * positions),
        kernels=kernels,
    )


def reference(
    cfg: DecoderConfig,
    shapes: Shapes,
    *,
    chunk: int = 0,
    masked: bool = False,
    tiles: bool = False,
) -> float:
    """Log-probabilities of completions: the reference pass."""
    return sum(group_parts(cfg, shapes, chunk=chunk, masked=masked, tiles=tiles))


def recomputed(cfg: DecoderConfig, parts: Parts, tokens: int, remat: str) -> float:
    """What a backward pass over recomputed layers computes again.

    With "attention" only dense attention: the kernel's results are kept. With "layers"
    all of a layer but `down`, whose result no gradient needs, unless a norm follows it.
    """
    if remat != "layers":
        return parts.attention if remat else 0.0
    attended = parts.attention + parts.kernels
    return parts.trunk + attended - (0 if cfg.post_norms else down(cfg, tokens))


def update(
    cfg: DecoderConfig,
    shapes: Shapes,
    *,
    remat: str,
    chunk: int = 0,
    masked: bool = False,
    tiles: bool = False,
) -> float:
    """Forward, backward (twice the forward) and recomputation: the head's logits
    always, and what `remat` says ("layers", "attention" or ""). The same for any number
    of micro-batches. The TPU's kernel makes 2 products of a tile forward, 7 backward:
    scores again, twice, and gradients of weights, once more than needed.

    With adapters (`cfg.lora`) the frozen matrices need no gradient.
    """
    B, P, G, C = shapes
    parts = group_parts(cfg, shapes, chunk=chunk, masked=masked, tiles=tiles)
    total = 3 * sum(parts) + parts.head + 3 / 2 * parts.kernels
    if cfg.lora:
        total -= parts.trunk + parts.head
    total += recomputed(cfg, parts, B * P + B * G * (C - 1), remat)
    return total


def encode(
    cfg: DecoderConfig, B: int, T: int, *, masked: bool = False, tiles: bool = False
) -> float:
    """Vectors of B texts of T tokens.

    The same for B rows of several texts, for encoders without windows.
    """
    return trunk(cfg, B * T) + sum(_attend(cfg, [(B, T, 0)], masked, tiles))


def choice(
    cfg: DecoderConfig,
    B: int,
    T: int,
    letters: int,
    *,
    masked: bool = False,
    tiles: bool = False,
) -> float:
    """Logits of a few letters at the last of T tokens."""
    hidden = encode(cfg, B, T, masked=masked, tiles=tiles)
    return hidden + 2.0 * B * cfg.width * letters


def encoder_update(
    cfg: DecoderConfig,
    B: int,
    rows: int,
    T: int,
    *,
    remat: str,
    masked: bool = False,
    tiles: bool = False,
) -> float:
    """Contrastive update: B queries and B items, all with all, in rows of T tokens."""
    dense, kernels = _attend(cfg, [(rows, T, 0)], masked, tiles)
    parts = Parts(trunk(cfg, rows * T), dense, 0.0, kernels)
    total = 3 * (2.0 * B * B * cfg.width + sum(parts)) + 3 / 2 * kernels
    total -= parts.trunk if cfg.lora else 0
    return total + recomputed(cfg, parts, rows * T, remat)


def ranking(users: int, items: int, width: int) -> float:
    """Products of users' queries with every item: cosines, sums of weights."""
    return 2.0 * users * items * width


def relayout() -> float:
    """0: a copy multiplies nothing, and merging adapters is not counted."""
    return 0.0


# --- bytes


def decode_bytes(cfg: DecoderConfig, shapes: Shapes, *, itemsize: int = 2) -> float:
    """Bytes that a decode step of B prompts must read: weights and caches, once.

    For one chip: its own B, and with tensor parallelism a share of the weights. Of an
    untied embedding only the looked-up rows are read; they are not counted.
    """
    B, P, G, C = shapes
    weights = trunk(cfg, 1) / 2 + head(cfg, 1) / 2
    slots = B * (cached(cfg, P) + G * cached(cfg, C))
    caches = 2 * cfg.num_kv_heads * cfg.head_size * slots
    return itemsize * (weights + caches)
