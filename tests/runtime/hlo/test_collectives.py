from collections import Counter

from blue.runtime.hlo.collectives import (
    collective_ops,
    collective_totals,
    network_bytes,
)

MIB = 2**20


def once(text):
    """kind -> (count, bytes) of the text's collectives, those in loops once."""
    count, size = Counter(), Counter()
    for op in collective_ops(text):
        count[op.kind] += 1
        size[op.kind] += op.bytes
    return {kind: (count[kind], size[kind]) for kind in count}


def test_text_for_this_machine(cpu_text):
    assert once(cpu_text) == {
        "all-reduce": (1, 512),
        "all-gather": (2, 8 * 512 + 1024),
        "reduce-scatter": (1, 512),  # the operand: whole
        "all-to-all": (1, 512),
        "collective-permute": (1, 512),
    }
    found = collective_totals(cpu_text)
    assert found["all-gather"] == {"count": 7, "bytes": 8 * 512 + 6 * 1024}
    assert found["all-reduce"] == {"count": 1, "bytes": 512}
    assert network_bytes(found) == sum(x["bytes"] for x in found.values()) + 512


def test_text_for_tpus(tpu):
    own = 128 * 1024  # elements a chip of [1024, 1024]
    assert collective_totals(tpu("kinds")) == {
        "all-gather": {"count": 1, "bytes": 8 * own * 2},
        "all-reduce": {"count": 1, "bytes": own * 4},
        "reduce-scatter": {"count": 1, "bytes": own * 4},
        "all-to-all": {"count": 1, "bytes": own * 2},
        "collective-permute": {"count": 1, "bytes": own * 4},  # a start and a done
    }


def test_layers_of_a_scan_run_as_often_as_they_are(tpu):
    text = tpu("scan")  # 6 layers, forward and recomputed backward
    ops = collective_ops(text)
    layers = [op for op in ops if op.times == 6]
    assert [(op.kind, op.bytes) for op in layers] == [
        ("all-gather", 512 * 512 * 2),
        ("all-gather", 512 * 512 * 2),
        ("all-reduce", 512 * 512 * 2),
    ]
    assert once(text)["all-reduce"] == (2, 512 * 1024 + 4)
    assert collective_totals(text)["all-gather"] == {"count": 12, "bytes": 6 * MIB}
    assert ops[0].op_name.endswith("while/body/closed_call/dot_general")


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter(tpu):
    # two layers of two matrices of [2048, 8192]: gathered forward, again for the
    # backward pass, and their gradients scattered
    size = 2048 * 8192 * 2
    assert once(tpu("scatter")) == {
        "all-gather": (8, 8 * size),
        "reduce-scatter": (4, 4 * size),
    }


def test_the_loop_of_a_windowed_product_counts_by_twos(tpu):
    found = collective_totals(tpu("windowed"))  # 4 of 8 blocks from either side
    block = 256 * 8192 * 2
    assert found["collective-permute"]["bytes"] == (1 + 2 * 4) * block


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
    assert collective_totals(PAIRS) == {
        "reduce-scatter": {"count": 2, "bytes": 2 * 64 * 4 * 2},
        "all-gather": {"count": 1, "bytes": 512 * 4 * 2 + 12},
        "all-reduce": {"count": 2, "bytes": 2 * 16},  # both branches, one turn
    }
