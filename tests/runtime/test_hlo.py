"""Collectives, loops and buffers in real compiled text: this machine's, and the TPU
compiler's (excerpts of our own programs, compiled for v6e:2x4, in fixtures/hlo)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from blue.runtime import hlo

HLO = Path(__file__).parents[1] / "fixtures/hlo"
MIB = 2**20


def tpu(name):
    return (HLO / f"tpu_{name}.txt").read_text()


@pytest.fixture(scope="module")
def cpu_text():
    """Five kinds outside a loop; a scan over 6 sharded matrices, gathered one by one"""
    mesh = Mesh(jax.devices(), ("x",))

    def kinds(a):  # a device's own: [8, 16] float32, 512 bytes
        return (
            jax.lax.psum(a, "x"),
            jax.lax.all_gather(a, "x", tiled=True),
            jax.lax.psum_scatter(a, "x", tiled=True),
            jax.lax.all_to_all(a, "x", 1, 0, tiled=True),
            jax.lax.ppermute(a, "x", [(i, (i + 1) % 8) for i in range(8)]),
        )

    specs = (P(), P(), P("x"), P("x"), P("x"))
    shard = {"mesh": mesh, "check_vma": False}
    kinds = jax.shard_map(kinds, in_specs=P("x"), out_specs=specs, **shard)

    def gathered(x, w):  # [16, 2] a device
        return x @ jax.lax.all_gather(w, "x", axis=1, tiled=True), None

    layers = lambda x, ws: jax.lax.scan(gathered, x, ws)[0]
    spec = P(None, None, "x")
    layers = jax.shard_map(layers, in_specs=(P("x"), spec), out_specs=P("x"), **shard)

    def program(a, ws):
        return kinds(a), layers(a, ws)

    at = lambda shape, spec: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    args = at((64, 16), P("x")), at((6, 16, 16), spec)
    return jax.jit(program).lower(*args).compile().as_text()


def test_collectives_of_text_for_this_machine(cpu_text):
    found = hlo.collectives(cpu_text)
    assert found == {
        "all-reduce": {"count": 1, "bytes": 512},
        "all-gather": {"count": 2, "bytes": 8 * 512 + 1024},
        "reduce-scatter": {"count": 1, "bytes": 512},  # the operand: whole
        "all-to-all": {"count": 1, "bytes": 512},
        "collective-permute": {"count": 1, "bytes": 512},
    }
    gather = {"all-gather": {"count": 1, "bytes": 1024}}
    assert hlo.inside_loops(cpu_text) == gather
    assert hlo.loops(cpu_text) == [6]
    assert hlo.repeated(cpu_text)["all-gather"] == {"count": 7, "bytes": 10240}
    assert hlo.network_bytes(found) == sum(x["bytes"] for x in found.values()) + 512


def test_collectives_of_text_for_tpus():
    own = 128 * 1024  # elements a chip of [1024, 1024]
    assert hlo.collectives(tpu("kinds")) == {
        "all-gather": {"count": 1, "bytes": 8 * own * 2},
        "all-reduce": {"count": 1, "bytes": own * 4},
        "reduce-scatter": {"count": 1, "bytes": own * 4},
        "all-to-all": {"count": 1, "bytes": own * 2},
        "collective-permute": {"count": 1, "bytes": own * 4},  # a start and a done
    }
    assert hlo.inside_loops(tpu("kinds")) == {} and hlo.loops(tpu("kinds")) == []


def test_layers_of_a_scan_run_as_often_as_they_are():
    text = tpu("scan")  # 6 layers, forward and recomputed backward
    assert hlo.loops(text) == [6, 6]
    assert hlo.inside_loops(text) == {
        "all-gather": {"count": 2, "bytes": 2 * 512 * 512 * 2},
        "all-reduce": {"count": 1, "bytes": 512 * 512 * 2},
    }
    assert hlo.collectives(text)["all-reduce"] == {"count": 2, "bytes": 512 * 1024 + 4}
    assert hlo.repeated(text)["all-gather"] == {"count": 12, "bytes": 6 * MIB}
    ops = hlo.collective_ops(text)
    assert [op.times for op in ops if op.in_loop] == [6, 6, 6]
    assert ops[0].op_name.endswith("while/body/closed_call/dot_general")


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    # two layers of two matrices of [2048, 8192]: gathered forward, again for the
    # backward pass, and their gradients scattered
    size = 2048 * 8192 * 2
    assert hlo.collectives(tpu("scatter")) == {
        "all-gather": {"count": 8, "bytes": 8 * size},
        "reduce-scatter": {"count": 4, "bytes": 4 * size},
    }


def test_the_loop_of_a_windowed_product_counts_by_twos():
    text = tpu("windowed")  # 4 of 8 blocks from either side, two a turn
    assert hlo.loops(text) == [2]
    block = 256 * 8192 * 2
    assert hlo.inside_loops(text)["collective-permute"]["bytes"] == 4 * block
    assert hlo.repeated(text)["collective-permute"]["bytes"] == (1 + 2 * 4) * block


PAIRS = """HloModule pairs

%scatter (p: bf16[64,4]) -> bf16[8,4] {
  %p = bf16[64,4]{1,0} parameter(0)
  ROOT %rs = bf16[8,4]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%sum
}

%branch (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  ROOT %ar = f32[4]{0} all-reduce(%q), to_apply=%sum
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %f = f32[4]{0} get-tuple-element(%t), index=1
  %s = s32[] get-tuple-element(%t), index=0
  %c = f32[4]{0} conditional(%s, %f, %f), branch_computations={%branch, %branch}
  ROOT %r = (s32[], f32[4]{0}) tuple(%s, %c)
}

%done (t2: (s32[], f32[4])) -> pred[] {
  %t2 = (s32[], f32[4]{0}) parameter(0)
  %f2 = f32[4]{0} get-tuple-element(%t2), index=1
  ROOT %all = pred[] custom-call(%f2), custom_call_target="all_done"
}

ENTRY %main (a: bf16[64,4], b: s4[3], c: (s32[], f32[4])) -> bf16[8,4] {
  %a = bf16[64,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = s4[3]{0} parameter(1)
  %c0 = (s32[], f32[4]{0}) parameter(2)
  %s = ((bf16[64,4]{1,0}), bf16[8,4]{1,0}, u32[]) async-start(%a), calls=%scatter
  %u = ((bf16[64,4]{1,0}), bf16[8,4]{1,0}, u32[]) async-update(%s), calls=%scatter
  %d = bf16[8,4]{1,0} async-done(%u), calls=%scatter
  %gs = ((bf16[64,4], s4[3]), (bf16[512,4], s4[24])) all-gather-start(%a, %b)
  %gd = (bf16[512,4], s4[24]) all-gather-done(%gs)
  %rs = (f8e4m3fn[16], f8e4m3fn[2]) reduce-scatter-start(%a), to_apply=%sum
  %rd = f8e4m3fn[2] reduce-scatter-done(%rs)
  %w = (s32[], f32[4]{0}) while(%c0), condition=%done, body=%body
  ROOT %out = bf16[8,4]{1,0} copy(%d)
}
"""


def test_pairs_tuples_branches_and_small_types():
    """Forms that our own programs do not have yet, as XLA writes them"""
    assert hlo.collectives(PAIRS) == {
        "reduce-scatter": {"count": 2, "bytes": 2 * 64 * 4 * 2},
        "all-gather": {"count": 1, "bytes": 512 * 4 * 2 + 12},
        "all-reduce": {"count": 2, "bytes": 2 * 16},  # both branches
    }
    assert hlo.inside_loops(PAIRS) == {"all-reduce": {"count": 2, "bytes": 32}}
    assert hlo.loops(PAIRS) == [None]


@pytest.mark.parametrize(
    "shape, elements, padded",
    [
        ("bf16[1,2]{1,0:T(8,128)(2,1)S(1)}", 4, 8 * 128 * 2),
        ("f32[3,5,130]{2,0,1:T(4,128)}", 7800, 4 * 5 * 256 * 4),
        ("pred[7]{0}", 7, 7),
        ("s4[3]", 2, 2),
        ("f32[]{:T(128)}", 4, 512),
        ("(f8e5m2[2]{0}, /*index=1*/(u64[2], token[]))", 18, 18),
    ],
)
def test_bytes_of_shapes(shape, elements, padded):
    assert hlo.shape_bytes(shape) == elements
    assert sum(map(hlo.padded_bytes, hlo.arrays(shape))) == padded


def test_the_largest_arrays_by_name():
    found = hlo.biggest_buffers(tpu("scan"), count=3)
    assert [b.shape for b in found] == [
        "f32[6,512,512]",
        "f32[6,64,512]",
        "bf16[8,512]",
    ]
    assert [b.name for b in found][1:] == ["ws", "x"]
    assert found[0].bytes == 6 * MIB


def test_text_that_is_none_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.collectives("module @jit_f attributes {}")
    with pytest.raises(ValueError, match="'x9'"):
        hlo.bits_of("x9")


def test_products_in_loops_count_as_often_as_they_run(cpu_text):
    assert hlo.product_flops(cpu_text) == 6 * 2 * 8 * 16 * 16
    # scan: [8, 512] x [512, 512] forward, recomputed, and two in the backward pass
    assert hlo.product_flops(tpu("scan")) == 6 * 4 * 2 * 8 * 512 * 512


KERNELS = """HloModule kernels

ENTRY %main (q: bf16[4,512,256]) -> bf16[4,512,256] {
  %q = bf16[4,512,256]{2,1,0} parameter(0)
  %own = bf16[4,512,256]{2,1,0} custom-call(%q), custom_call_target="Sharding"
  %f = (bf16[4,512,256], f32[4,512,128]) custom-call(%own), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/jvp()/flops_1000/vmap(s)/splash_mha_fwd_segmented_residuals/pallas_call"}
  %o = bf16[4,512,256] get-tuple-element(%f), index=0, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/jvp()/flops_1000/vmap(s)/splash_mha_fwd_segmented_residuals/pallas_call"}
  ROOT %dq = bf16[4,512,256] custom-call(%o), metadata={op_name="jit(f)/transpose(jvp())/flops_1000/vmap(s)/splash_mha_dq_segmented_no_residuals/pallas_call"}
}
"""  # noqa: E501


def test_kernels_tell_what_they_multiply():
    """Text as the TPU compiler writes it: their metadata goes over several lines"""
    assert hlo.product_flops(KERNELS) == (2 + 3) * 1000


def test_products_as_the_tpu_compiler_writes_them():
    """Its convolutions have batches and heads as holes and padding of a window"""
    B, G, P, C, D, F, N, K, R, H = 2, 4, 256, 128, 256, 1024, 4, 2, 2, 16
    found = {}
    module = hlo.parse(tpu("products"))
    siblings = {i.name: i for i in module.computations[module.entry]}
    for i in siblings.values():
        if i.opcode == "convolution":
            found[hlo._op_name(i)] = hlo._product(i, siblings)
    rows = B * P
    assert found == {
        "BTD,DNH->BTNH": 2 * rows * D * N * H,
        "BTD,DKH->BTKH": 2 * rows * D * K * H,
        "BTNH,BSNH->BNTS": 2 * rows * P * N * H,
        "BNTS,BSNH->BTNH": 2 * rows * P * N * H,
        "BTNH,NHD->BTD": 2 * rows * N * H * D,
        "BTD,DF->BTF": 2 * rows * D * F,
        "BGCKRH,BPKH->BKRGCP": 2 * B * K * R * G * P * H,
        "BGCKRH,BGSKH->BKRGCS": 2 * B * K * R * G * C * H,
        "BKRGCP,BPKH->BGCKRH": 2 * B * K * R * G * P * H,
        "BKRGCS,BGSKH->BGCKRH": 2 * B * K * R * G * C * H,
    }
    assert hlo.product_flops(tpu("products")) == sum(found.values())
