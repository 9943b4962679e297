"""Sampling programs: their layout, their copies, any mesh."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from blue.inference import sampling, scoring
from blue.inference.packing import RowShapes
from blue.models import gemma3
from blue.models.decoder import DecoderConfig
from blue.models.params import abstract_params, make_init
from blue.runtime import sharding
from blue.runtime.hlo import text as hlo
from blue.runtime.shapes import Sampling, Shapes
from blue.runtime.sharding import AXES, by_batch, put, to_host
from tests.helpers.small_model import one_a_row
from tests.helpers.updates import FLOAT32, SHAPES, B, C, P, batch_on, mesh_of, small

TINY = DecoderConfig(
    family="qwen3", vocab_size=13, width=16, mlp_width=32, num_layers=2, num_heads=4,
    num_kv_heads=2, head_size=8,
)  # fmt: skip

DRAWS = Sampling(temperature=1.0, top_k=0, top_p=1.0, end_ids=(1,), pad_id=0)


@pytest.mark.parametrize("kv_heads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_loop_copies_no_cache(kv_heads):
    """Counted in the compiled text: nothing of a cache's size is copied or turned."""
    cfg = dataclasses.replace(
        TINY, num_layers=3, pattern=("local", "global"), window=7, num_kv_heads=kv_heads
    )
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    program = sampling.make_decode(cfg, mesh, Shapes(5, 15, 3, 11), DRAWS, "float32")
    caches = {5 * kv_heads * 8 * slots for slots in (7, 15, 3 * 7, 3 * 11)}
    module = hlo.parse(program.compile().as_text())
    loop = [ops for name, ops in module.computations.items() if name != module.entry]
    copied, updated = [], 0
    for op in (op for ops in loop for op in ops):
        sizes = {math.prod(array.dims) for array in hlo.arrays(op.shape)}
        if sizes & caches and op.opcode in ("copy", "transpose", "concatenate"):
            copied.append((op.opcode, op.shape))
        updated += bool(sizes & caches) and op.opcode == "dynamic-update-slice"
    assert not copied and updated == 2 * 3


def test_sampling_and_encoding_are_the_same_on_any_mesh():
    cfg = small(gemma3.tiny_gemma3)
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = mesh_of(shape)
        params = make_init(cfg, mesh, "float32")(np.uint32(3))
        draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(1,), pad_id=0)
        sample = sampling.make_sample(cfg, mesh, SHAPES, draws, "float32")
        embed = scoring.make_embed(cfg, mesh, RowShapes(B, P, 1), FLOAT32)
        relayout = sampling.make_relayout(cfg, mesh, FLOAT32)
        batch = batch_on(mesh)
        ids = put(np.arange(B, dtype=np.int32), by_batch(mesh))
        seeds = np.array([0, 1, 2], np.uint32)
        rollout = sample(relayout(params), batch.prompt, batch.prompt_mask, ids, seeds)
        texts = one_a_row(*to_host((batch.prompt, batch.prompt_mask)))
        vectors = embed(params, *put(texts, by_batch(mesh)))[:, 0]
        results.append(to_host((rollout, vectors)))
    (a, u), (b, v) = results
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    np.testing.assert_allclose(u, v, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1.0, atol=1e-5)


def test_continuous_batching_is_the_same_on_any_mesh():
    """Sixteen prompts through eight rows; keys and values split over all three axes."""
    cfg = small(gemma3.tiny_gemma3, layers=2)
    shapes, draws = Shapes(B, P + 4, 1, C), Sampling(1.0, 0, 1.0, tuple(range(12)), 0)
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = mesh_of(shape)
        params = make_init(cfg, mesh, "float32")(np.uint32(3))
        params = sampling.make_relayout(cfg, mesh, FLOAT32)(params)
        refill = sampling.make_refill(cfg, mesh, shapes, Shapes(B, P), "float32")
        advance = sampling.make_advance(cfg, mesh, shapes, draws, "float32")
        slots = sampling.make_new_slots(cfg, mesh, shapes, "float32")()
        seeds, found = np.array([0, 1, 2], np.uint32), []
        rows = np.arange(B, dtype=np.int32)
        for seed in (0, 1):
            batch = batch_on(mesh, seed)
            ids = put(np.arange(B, dtype=np.int32) + 10 * seed, by_batch(mesh))
            new = (batch.prompt, batch.prompt_mask, ids, put(rows, by_batch(mesh)))
            old, slots = slots, refill(params, slots, *new)
            assert old.state[2][0].k.is_deleted()  # its memory was reused
            # half of the rows, then the other half: the second refill finds both ended
            for free in (B // 2, B):
                slots, steps = advance(params, slots, np.int32(free), seeds)
                found.append(to_host((slots.tokens, slots.length, slots.done, steps)))
                assert found[-1][2].sum() >= free
        kv = slots.state[1][0].k
        assert kv.addressable_shards[0].data.size * mesh.size == kv.size
        results.append(found)
    jax.tree.map(np.testing.assert_array_equal, *results)
    lengths = results[0][-1][1]
    assert len(set(lengths.tolist())) > 2


def test_decode_layout_uses_the_tensor_axis_alone():
    mesh = sharding.make_mesh(1, 4, 2)
    shapes = abstract_params(gemma3.gemma3_4b(), mesh, "float32")
    decode = sampling.abstract_decode_params(shapes, mesh, "bfloat16")
    assert shapes["layers"]["q"].sharding.spec == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    one = decode["layers"][5]["q"]
    assert one.sharding.spec == PartitionSpec(None, "tensor", None)
    assert one.dtype == "bfloat16"


def test_weights_that_are_whole_are_not_split_to_be_gathered():
    """As in the decode layout: a program of them moves none of them."""
    mesh = sharding.make_mesh(1, 8, 1)
    cfg = gemma3.tiny_gemma3()
    prefill = sampling.make_prefill(cfg, mesh, Shapes(8, 16), "float32")
    assert "all-gather" not in prefill.compile().as_text()
