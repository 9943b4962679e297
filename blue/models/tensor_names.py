"""Names of a checkpoint's tensors: the ones that all families of transformers share."""

from collections.abc import Mapping

# Name in the file after its prefix, {} the layer -> path in our tree, and the number of
# leading axes of our array that are inputs (the file has [outputs, inputs]; 0: the same
# array in both).
TensorNames = Mapping[str, tuple[tuple[str, ...], int]]

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, by our names


def tensor_names(norms: Mapping[str, str]) -> TensorNames:
    """The names of a family's tensors, except the head's.

    Names of parameters that a model lacks, such as the norms of queries and keys, are
    not used.

    Args:
        norms: name in the file of a layer's norm, such as "post_attention_layernorm",
            -> ours, such as "mlp_norm": the norms whose name depends on the family.
    """
    layer: dict[str, tuple[tuple[str, ...], int]] = {
        "input_layernorm": (("attention_norm", "weight"), 0),
        "self_attn.q_proj": (("q",), 1),
        "self_attn.k_proj": (("k",), 1),
        "self_attn.v_proj": (("v",), 1),
        "self_attn.q_norm": (("q_norm", "weight"), 0),
        "self_attn.k_norm": (("k_norm", "weight"), 0),
        "self_attn.o_proj": (("o",), 2),
        **{name: ((ours, "weight"), 0) for name, ours in norms.items()},
        "mlp.gate_proj": (("gate",), 1),
        "mlp.up_proj": (("up",), 1),
        "mlp.down_proj": (("down",), 1),
    }
    return {
        "embed_tokens.weight": (("embed",), 0),
        **{
            f"layers.{{}}.{name}.weight": (("layers", *path), inputs)
            for name, (path, inputs) in layer.items()
        },
        "norm.weight": (("final_norm", "weight"), 0),
    }
