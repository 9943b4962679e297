"""The reference pass in parts."""

import numpy as np

from blue.inference import scoring
from blue.models import gemma3
from blue.models.params import make_init
from blue.runtime.sharding import to_host
from tests.helpers.updates import FLOAT32, SHAPES, B, batch_on, mesh_of, small


def test_the_reference_pass_may_go_a_few_prompts_at_a_time():
    """And every device works on each of them."""
    cfg, mesh = small(gemma3.tiny_gemma3), mesh_of((1, 4, 2))
    params = make_init(cfg, mesh, "float32")(np.uint32(3))
    batch, found = batch_on(mesh), []
    for micro in (0, 4):
        run = scoring.make_completion_logprobs(
            cfg, mesh, SHAPES, FLOAT32, temperature=1.0, microbatch=micro
        )
        found.append(
            to_host(run(params, batch.prompt, batch.prompt_mask, batch.tokens))
        )
    assert len(set(found[0].ravel().tolist())) > B
    np.testing.assert_allclose(*found, atol=1e-5)
