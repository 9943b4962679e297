"""Models of two layers, a tokenizer of a few words: what tests of programs share."""

import dataclasses
import functools

import numpy as np

from blue.models.params import make_init
from blue.runtime.shapes import Precision
from blue.text.templates import TEMPLATES, wordings
from blue.text.tokenizer import train_tokenizer

WORDS = "red blue green tent lamp chair river stone apple bread".split()
LINES = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:5] for c in WORDS[5:]]
SHORT = TEMPLATES["short"]
FLOAT32 = Precision("float32", "float32")


@functools.cache
def few_words():
    """A tokenizer of LINES and the words of the SHORT templates."""
    return train_tokenizer([*LINES, *wordings(SHORT)], vocab_size=600)


def make(family, tokenizer, mesh, layers=2):
    """A config of a few small layers, and random parameters on the mesh."""
    cfg = dataclasses.replace(
        family(), vocab_size=-(-tokenizer.vocab_size // 8) * 8, width=32, mlp_width=32,
        head_size=8, num_layers=layers, pattern=family().pattern[-2:],
    )  # fmt: skip
    return cfg, make_init(cfg, mesh, "float32")(np.uint32(1))


def alone(call, ids, length=64):
    """call(tokens [1 T], mask) of one text, compiled once for all texts."""
    row = np.zeros((1, length), np.int32)
    row[0, length - len(ids) :] = ids
    return call(row, np.arange(length)[None] >= length - len(ids))


def one_a_row(tokens, mask):
    """Right-aligned texts as rows of `packing.Rows`, one in each: its first five."""
    segment = np.where(mask, 0, -1).astype(np.int32)
    position = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    ends = np.full((len(tokens), 1), tokens.shape[1] - 1, np.int32)
    return np.asarray(tokens), segment, segment, position, ends
