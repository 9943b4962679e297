"""What a program is built for: sizes, sampling settings, number types.

They are in the lowest room because builders of all rooms and the formulas of FLOPs take
them. All are hashable: builders with equal arguments share one program.
"""

from typing import NamedTuple


class Shapes(NamedTuple):
    """Sizes of a batch: B prompts of P tokens, for each G completions of C tokens.

    The G may be completions of the profiler, targets of supervised fine-tuning or
    options of a question. With the defaults it is a batch of prompts alone.
    """

    batch: int  # B, rows of the whole mesh
    prompt: int  # P, padded
    group: int = 1  # G
    completion: int = 0  # C, padded

    def prompts(self) -> "Shapes":
        """The batch of prompts alone."""
        return Shapes(self.batch, self.prompt)


class Sampling(NamedTuple):
    """How tokens are drawn, and where a completion ends."""

    temperature: float  # 0: the most likely token
    top_k: int  # 0: all tokens
    top_p: float  # mass of the nucleus, in (0, 1]; 1: all tokens
    end_ids: tuple[int, ...]  # any of them ends a completion and is its last token
    pad_id: int  # what follows the end


class Precision(NamedTuple):
    """Number types, such as bfloat16, and what a backward pass computes again."""

    params: str  # of parameters at rest
    compute: str  # of activations, caches and matrix products
    remat: str = ""  # "layers", "attention", or "" to keep all; only updates use it
