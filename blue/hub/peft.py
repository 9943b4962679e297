"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint. PEFT has A as [r,
inputs] and B as [outputs, r], beside matrices [outputs, inputs]. It adds lora_alpha / r
B A x. These are our arrays, transposed.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from blue.models import families
from blue.models.decoder import DecoderConfig, Params

# Prefixes that PEFT adds to names: of a causal LM, and of AutoModel.
PREFIXES = {
    "CAUSAL_LM": "base_model.model.model.",
    "FEATURE_EXTRACTION": "base_model.model.",
}


def save(
    directory: str | os.PathLike,
    cfg: DecoderConfig,
    adapters: Params,
    *,
    task: str,
    base: str,
    tower: str = "",
) -> None:
    """Writes the two files.

    Args:
        directory: made if it is not there.
        cfg: with `lora`.
        adapters: the trained part of `lora.split`, numpy; any floating dtype.
        task: a key of `PREFIXES`; PEFT's task_type.
        base: the directory or hub id of the base model; may be empty.
        tower: the name of our decoder inside a multimodal base, "language_model".
    """
    from safetensors.numpy import save_file

    assert cfg.lora is not None
    prefix = PREFIXES[task] + (f"{tower}." if tower else "")
    modules, arrays = [], {}
    for name, (path, _) in families.of(cfg).TENSORS.items():
        if path[0] != "layers" or path[-1] not in cfg.lora.targets:
            continue
        module, r = name.removesuffix(".weight"), cfg.lora.rank
        modules.append(module.rpartition(".")[2])
        for layer in range(cfg.num_layers):
            a, b = (adapters["layers"][f"{path[-1]}_{end}"][layer] for end in "ab")
            full = prefix + module.format(layer)
            arrays[f"{full}.lora_A.weight"] = _plain(a.reshape(-1, r).T)
            arrays[f"{full}.lora_B.weight"] = _plain(b.reshape(r, -1).T)
    # the last name alone would match modules of other towers
    here = rf".*\b{tower}\..*\.({'|'.join(modules)})" if tower else modules
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": cfg.lora.rank,
        "lora_alpha": cfg.lora.alpha,
        "target_modules": here,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(arrays, directory / "adapter_model.safetensors", {"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (directory / "adapter_config.json").write_text(text, "utf-8")


def _plain(array: Any) -> np.ndarray:
    """A contiguous array: save_file ignores strides."""
    return np.ascontiguousarray(array)
