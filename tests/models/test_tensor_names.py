"""Names of a checkpoint's tensors against the parameters of every family."""

import jax
import pytest

from blue.models import decoder, families
from blue.models.tensor_names import tensor_names


def test_a_family_adds_the_names_of_its_norms():
    found = tensor_names({"pre_feedforward_layernorm": "mlp_norm"})
    name = "layers.{}.pre_feedforward_layernorm.weight"
    assert found[name] == (("layers", "mlp_norm", "weight"), 0)
    assert found["layers.{}.self_attn.o_proj.weight"] == (("layers", "o"), 2)
    assert len(found) == len(tensor_names({})) + 1


@pytest.mark.parametrize("name", ["tiny_gemma3", "tiny_qwen3"])
def test_every_parameter_has_one_name(name):
    cfg = families.preset(name)
    shapes = jax.eval_shape(lambda: decoder.init_params(cfg, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = [tuple(entry.key for entry in path) for path, _ in leaves]
    named = [path for path, _ in families.of(cfg).TENSORS.values()]
    assert sorted(named) == sorted(path for path in paths if path != ("head",))
    # the inputs of a matrix are its leading axes, and some output is left
    sizes = {path: leaf.ndim for path, (_, leaf) in zip(paths, leaves, strict=True)}
    for path, inputs in families.of(cfg).TENSORS.values():
        of_a_layer = sizes[path] - (path[0] == "layers")
        assert 0 <= inputs < of_a_layer
