"""A model: its config, its parameters on the mesh, its tokenizer."""

from typing import NamedTuple

from blue.hub.source import Source
from blue.models.decoder import DecoderConfig, Params
from blue.text.tokenizer import Tokenizer


class Model(NamedTuple):
    """A model with its parameters on the mesh, and the tokenizer it was made for."""

    cfg: DecoderConfig
    params: Params
    tokenizer: Tokenizer
    name: str
    step: int = 0  # of the stage that trained it
    origin: str = ""  # identifies a base (adapters.py); empty: by its parameters
    source: Source = Source()  # of the weights it started with
