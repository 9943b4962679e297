"""Static word vectors of the package wordllama as an encoder: no network, no training.

--config.evaluate.transfer.kind=function \\
--config.evaluate.transfer.checkpoint=wl_encoder:embed   (run in this folder's parent
with PYTHONPATH=experiments)
"""

import importlib.util
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

_spec = importlib.util.find_spec("wordllama")
assert _spec and _spec.submodule_search_locations, "pip install wordllama"
_ROOT = Path(_spec.submodule_search_locations[0])
(_TABLE,) = load_file(_ROOT / "weights/l2_supercat_256.safetensors").values()
_TOKENIZER = Tokenizer.from_file(
    str(_ROOT / "tokenizers/l2_supercat_tokenizer_config.json")
)


def embed(texts: list[str]) -> np.ndarray:
    """Mean of the vectors of a text's word pieces, [n, 256]; zeros for no words."""
    out = np.zeros((len(texts), _TABLE.shape[1]), np.float32)
    encoded = _TOKENIZER.encode_batch(list(texts), add_special_tokens=False)
    for row, pieces in enumerate(encoded):
        if pieces.ids:
            out[row] = _TABLE[pieces.ids].astype(np.float32).mean(axis=0)
    return out
