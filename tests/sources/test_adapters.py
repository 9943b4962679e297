"""Adapters beside a model, and their note."""

import jax
import numpy as np
from etils import epath

from blue.hub import export
from blue.hub.model import Model
from blue.models import lora
from blue.models.params import make_init
from blue.sources import adapters
from tests.helpers.small_adapters import QWEN, mesh_of


def test_adapters_lie_beside_the_very_arrays_of_the_reference():
    mesh, plain = mesh_of(1, 2, 1), lora.without(QWEN)
    params = make_init(plain, mesh, "float32")(np.uint32(0))
    base = Model(plain, params, None, "base")
    model = adapters.add(base, QWEN.lora, mesh, seed=1, dtype="float32")
    frozen, trained = lora.split(model.params)
    assert jax.tree.structure(frozen) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(frozen), jax.tree.leaves(params), strict=True)
    assert all(a is b for a, b in pairs)
    layers = trained["layers"]
    assert not np.any(layers["o_b"]) and np.std(layers["down_a"]) > 0.1
    assert layers["down_a"].sharding.mesh == mesh
    other = adapters.add(base, QWEN.lora, mesh, seed=2, dtype="float32")
    assert np.any(other.params["layers"]["q_a"] != layers["q_a"])


def test_a_stage_without_adapters_takes_the_old_ones_away(tmp_path):
    mesh, plain = mesh_of(1, 1, 1), lora.without(QWEN)
    params = make_init(plain, mesh, "float32")(np.uint32(0))
    base = Model(plain, params, None, "base")
    model = adapters.add(base, QWEN.lora, mesh, seed=1, dtype="float32")
    best = lora.split(model.params)[1]
    folder = epath.Path(tmp_path / "export/profiler_adapter")
    for start, there in ((model, True), (base, False)):
        export._write_adapters(folder, start, "profiler", best)
        assert folder.exists() == there
