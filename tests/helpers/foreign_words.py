"""A module whose functions embed words."""

import sys

from tests.helpers import small_stages

WORDS = """
import zlib
import jax
import numpy as np

CALLS = []
HOOK = []

def embed(texts):
    if HOOK:
        return HOOK[0](texts)
    CALLS.append(list(texts))
    out = np.zeros((len(texts), 48))
    for row, text in zip(out, texts):
        for word in text.lower().split():
            row[zlib.crc32(word.encode()) % 48] += 1
    return out

not_callable = 3
flat = lambda texts: np.ones(len(texts))
short = lambda texts: np.ones((len(texts) - 1, 4))
wider = lambda texts: np.ones((len(texts), len(texts)))
words = lambda texts: [t.split() for t in texts]
nothing = lambda texts: None
empty = lambda texts: np.ones((len(texts), 0))

def nan(texts):
    out = np.ones((len(texts), 4))
    out[[not t for t in texts]] = np.nan
    return out

def raises(texts):
    raise KeyError("no such word")
"""

BASE = {"max_tokens": 32, "batch_size": 4}


def module_of_words(tmp_path, monkeypatch):
    """For a fixture: the name of a module in the current directory, new each time."""
    name = f"words_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def foreign_config(kind, checkpoint):
    """Two steps of GRPO and the evaluation, with an encoder that is not ours."""
    c = small_stages.four_step_config()
    c.num_steps, c.eval_every = 2, 2
    c.encoder.kind, c.encoder.checkpoint = kind, checkpoint
    c.stages = ("profiler", "evaluate")
    return c
