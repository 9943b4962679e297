from blue.runtime.hlo.flops import _product, product_flops
from blue.runtime.hlo.text import op_name, parse


def test_products_in_loops_count_as_often_as_they_run(cpu_text, tpu):
    assert product_flops(cpu_text) == 6 * 2 * 8 * 16 * 16
    # scan: [8, 512] x [512, 512] forward, recomputed, and two in the backward pass
    assert product_flops(tpu("scan")) == 6 * 4 * 2 * 8 * 512 * 512


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
    assert product_flops(KERNELS) == (2 + 3) * 1000


def test_products_as_the_tpu_compiler_writes_them(tpu):
    """Its convolutions have batches and heads as holes and padding of a window"""
    B, G, P, C, D, F, N, K, R, H = 2, 4, 256, 128, 256, 1024, 4, 2, 2, 16
    found = {}
    module = parse(tpu("products"))
    siblings = {i.name: i for i in module.computations[module.entry]}
    for i in siblings.values():
        if i.opcode == "convolution":
            found[op_name(i)] = _product(i, siblings)
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
    assert product_flops(tpu("products")) == sum(found.values())
