"""The work of a training step."""

import dataclasses

from blue.models.decoder import DecoderConfig
from blue.training import watch
from configs import base

# One layer, or two of different kinds, are unrolled: XLA counts a loop's body once. It
# also counts an elementwise operation as 1 FLOP: 1 to 3% at these widths, so 5% here.
QWEN = DecoderConfig(
    family="qwen3", vocab_size=512, width=128, mlp_width=512, num_layers=1, num_heads=4,
    num_kv_heads=2, head_size=32,
)  # fmt: skip


def test_flops_of_a_training_step_by_hand():
    """MFU is of the programs that run: 5 decode steps of 8, recomputed layers"""
    config = base.get_config()
    config.batch_size, config.group_size, config.max_completion_tokens = 3, 2, 8
    config.remat = "layers"
    cfg = dataclasses.replace(QWEN, post_norms=True)
    found = watch.flops_per_step(config, cfg, prompt_tokens=10, decode_steps=5)
    matrices = 2 * (128 * 32 * (4 + 4 + 2 + 2) + 3 * 128 * 512)
    pair, head = 4 * 4 * 32, 2 * 128 * 512
    prompts = 3 * (10 * matrices + 10 * 10 * pair)
    # of the prompts' only layer the rollout needs q, k and v, and the last position
    unused = 3 * 9 * (matrices - 2 * 128 * 32 * (4 + 2 + 2) + 10 * pair)
    decode = 5 * 6 * (matrices + 18 * pair + head)
    layers = prompts + 6 * 7 * (matrices + 17 * pair)
    rollout = prompts - unused + decode
    assert found == rollout + 5 * layers + (1 + 4) * 6 * 8 * head
