"""config -> templates, formats and tokenizers."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.hub import sentence_layout
from blue.hub.model import Model
from blue.hub.source import fetch
from blue.inference.embed import TextEncoder
from blue.runtime import distributed, files
from blue.sources.open_run import Run
from blue.text import prompts, queries
from blue.text.rule_profiles import template_profile
from blue.text.templates import TEMPLATES, Templates, wordings
from blue.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

logger = logging.getLogger("blue")

OWN_PROMPT = "@encoder"  # prompts.instruction that takes the checkpoint's own


def templates_of(config: ConfigDict) -> Templates:
    """The wording of all prompts."""
    return TEMPLATES[config.prompts.style]


def query_format_of(config: ConfigDict, encoder: TextEncoder) -> queries.QueryFormat:
    """How users become queries of this encoder."""
    return _query_format(
        config,
        encoder.num_tokens,
        encoder.max_tokens,
        name=encoder.name,
        query_prompt=encoder.query_prompt,
    )


def own_query_format_of(config: ConfigDict, encoder: Model) -> queries.QueryFormat:
    """As `query_format_of`, for our own encoder while it is trained."""
    return _query_format(
        config,
        token_counter(encoder),
        config.encoder.max_tokens,
        name=encoder.name,
        query_prompt=own_query_prompt(encoder),
    )


def token_counter(encoder: Model) -> Callable[[str], int]:
    """Text -> its number of tokens for the encoder, the pooled one included."""
    return lambda text: len(encoder.tokenizer.pooled(text))


def own_query_prompt(encoder: Model) -> str | None:
    """The query prompt of the checkpoint the encoder started from, if it has one."""
    directory = encoder.source.directory
    return sentence_layout.read(directory).query_prompt if directory else None


def _query_format(
    config: ConfigDict,
    num_tokens: Callable[[str], int],
    max_tokens: int,
    *,
    name: str,
    query_prompt: str | None,
) -> queries.QueryFormat:
    instruction = config.prompts.instruction
    prefix = prompts.query_prefix(instruction)
    if instruction == OWN_PROMPT:
        if query_prompt is None:
            raise UserError(
                f"prompts.instruction={OWN_PROMPT}: encoder {name} brings no query "
                f"prompt (prompts.query in {sentence_layout.PROMPTS}); write an "
                "instruction, or leave it empty"
            )
        prefix = query_prompt
    elif query_prompt is not None and query_prompt != prefix:
        logger.info(
            "encoder %s: its own query prompt is %r, ours %r (prompts.instruction=%s "
            "takes its own)",
            name,
            query_prompt,
            prefix,
            OWN_PROMPT,
        )
    return queries.QueryFormat(
        templates=templates_of(config),
        prefix=prefix,
        recent_items=config.prompts.recent_items,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
    )


def prompt_format_of(config: ConfigDict, profiler: Model) -> queries.PromptFormat:
    """How users become profiler prompts."""
    return queries.PromptFormat(
        templates=templates_of(config),
        history_items=config.prompts.history_items,
        tokenizer=profiler.tokenizer,
        max_tokens=config.max_prompt_tokens,
    )


def load_role_tokenizer(run: Run, role: str, checkpoint: str) -> Tokenizer:
    """The role's tokenizer: `<role>.tokenizer`, else the one in `checkpoint`.

    Where there is neither, it is trained on the catalogue.
    """
    config, log = run.config, run.log
    named, field = config[role].tokenizer, f"{role}.tokenizer"
    if named:
        return load_tokenizer(fetch(named, field, weights=False).directory)
    if checkpoint:
        return load_tokenizer(checkpoint)
    directory = Path(run.workdir) / "tokenizer"

    def train() -> None:
        if directory.exists():
            return
        wording = templates_of(config)
        rng = np.random.default_rng(config.seed)
        spoken = [
            template_profile(wording, log.titles[i : i + 20], num_items=8, rng=rng)
            for i in range(0, len(log.titles), 20)
        ]
        corpus = [*log.titles, *log.texts, *spoken, *wordings(wording)]
        trained = train_tokenizer(corpus, vocab_size=config.tokenizer.vocab_size)
        # half a tokenizer might load, and every later model depends on its ids
        with files.whole_directory(directory) as draft:
            trained.save(draft)

    distributed.on_process_0(train)
    return load_tokenizer(directory)
