"""BLUE: language models that write user profiles, and the encoder that reads them.

    from blue import load_encoder, load_profiler, rank, read_log

`blue.api` documents them. They are loaded at first use, so `import blue` does not
import jax.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blue.api import load_encoder, load_profiler, rank, read_log

__all__ = ["load_encoder", "load_profiler", "rank", "read_log"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'blue' has no attribute {name!r}")
    from blue import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
