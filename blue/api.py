"""The Python API: exported models, and those of the hub, as plain objects.

    from blue import load_encoder, load_profiler, rank

    profiler = load_profiler("runs/quickstart/export/profiler")
    profiles = profiler.write([["orla lamp", "orla jug"], ["brum tent"]])
    encoder = load_encoder("runs/quickstart/export/encoder")
    best, scores = rank(encoder, profiles, ["orla cup", "brum stove", "nim hat"], k=2)

A model is an export of a run, any Hugging Face directory of a supported family, or a
hub id. An export brings its prompt, lengths and temperature (`recipe`); no workdir and
no config file is needed. Mistakes are `blue.errors.UserError`, in one line.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from blue.data.clean import clean_line
from blue.data.log import Log
from blue.data.readers import table
from blue.errors import UserError
from blue.hub import recipe, sentence_layout
from blue.hub.directory import load_decoder, read_config
from blue.hub.model import Model
from blue.hub.recipe import EncoderRecipe, ProfilerRecipe
from blue.hub.source import Source, fetch
from blue.inference.embed import make_embed_programs, make_embedder
from blue.inference.generate import Profile, make_generator
from blue.inference.pad import bucket_for
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import batch_shards, make_mesh
from blue.sources.data import READERS
from blue.sources.encoder import ITEMS_A_CALL
from blue.sources.role import check_vocabulary, stage_id
from blue.stages import write_profiles
from blue.text.arguments import (
    Ratings,
    check_length,
    clean_histories,
    clean_ratings,
)
from blue.text.queries import (
    PromptFormat,
    QueryFormat,
    history_profile_query,
    profile_prompt,
)
from blue.text.templates import TEMPLATES
from blue.text.tokenizer import load_tokenizer

__all__ = [
    "Encoder",
    "Log",
    "Profile",
    "Profiler",
    "load_encoder",
    "load_profiler",
    "rank",
    "read_log",
]
ITEM_CHARS = 2000  # of an item's text: the limit of the readers of logs
QUERIES_A_BLOCK = 256  # bounds the memory: scores of all items for so many queries
KINDS = ("query", "item")
TABLE = {"events": "events.csv", "items": "items.csv", "separator": ""}
COLUMNS = {  # usual names, such as customerId, are found in their place
    "user_id": "user_id",
    "item_id": "item_id",
    "timestamp": "timestamp",
    "rating": "rating",
    "items_item_id": "item_id",
}


# --- the profiler


@dataclasses.dataclass(frozen=True)
class Profiler:
    """A language model that writes profiles; from `load_profiler`."""

    recipe: ProfilerRecipe  # prompt, lengths, temperature
    model: Model = dataclasses.field(repr=False)
    mesh: Mesh = dataclasses.field(repr=False)

    def write(
        self,
        histories: Sequence[Sequence[str]],
        ratings: Sequence[Ratings] | None = None,
        *,
        user_ids: Sequence[str] | None = None,
        seed: int = 0,
    ) -> list[Profile]:
        """One profile for each of n users, in order: (text, num_tokens, finished).

            profiler.write([["A film", "Another film"], []], ratings=[[4, 5], []])

        A profile depends on the history, the seed and the user's key, not on who else
        is written. The first call for a prompt length compiles.

        Args:
            histories: of each user the titles, oldest first, written as in the history
                of training (`data.title_template`); may be empty. Oldest titles are
                dropped where the prompt is too long.
            ratings: of each user one number a title, on any scale; None or NaN where
                there is none. Wordings without ratings (`short`) ignore them.
            user_ids: keys of the sampling. A run's ids and seed give the profiles of
                its stage `write_profiles`. None: places in the list.
            seed: 0 to 2^32 - 1.

        Raises:
            UserError: the lists do not fit together, a title is empty, a rating is no
                number, or one title is too long for the prompt.
        """
        prompts = self.prompts(histories, ratings)
        keys = list(range(len(prompts)))
        if user_ids is not None:
            check_length("user_ids", user_ids, len(prompts))
            keys = [write_profiles.sampling_id(user) for user in user_ids]
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed!r}, must be a whole number below 2^32")
        if not prompts:
            return []
        of = self.recipe
        rows = _whole_batch(of.batch_size, self.mesh)
        needed = {bucket_for(of.prompt_buckets, len(prompt)) for prompt in prompts}
        generate = make_generator(  # compiles what it has not compiled yet
            self.model.cfg,
            self.model.tokenizer,
            self.mesh,
            shapes=[
                Shapes(rows, length, 1, of.max_completion_tokens)
                for length in sorted(needed)
            ],
            precision=Precision(of.params_dtype, of.compute_dtype),
            temperature=of.sampling_temperature,
            key=(seed, stage_id(write_profiles.STAGE)),
        )
        return generate(self.model.params, prompts, keys)

    def prompts(
        self,
        histories: Sequence[Sequence[str]],
        ratings: Sequence[Ratings] | None = None,
    ) -> list[list[int]]:
        """The token ids that the model reads of each user; arguments as in `write`."""
        histories = clean_histories(histories)
        numbers = clean_ratings(ratings, histories)
        prompt_format = PromptFormat(
            templates=TEMPLATES[self.recipe.prompt_style],
            history_items=self.recipe.history_items,
            tokenizer=self.model.tokenizer,
            max_tokens=self.recipe.max_prompt_tokens,
        )
        return [
            profile_prompt(prompt_format, range(len(titles)), given, titles)
            for titles, given in zip(histories, numbers, strict=True)
        ]


def load_profiler(checkpoint: str | os.PathLike, **settings: Any) -> Profiler:
    """The profiler of an export, of a Hugging Face directory or of the hub.

        load_profiler("runs/quickstart/export/profiler")
        load_profiler("owner/name@revision", max_completion_tokens=300, batch_size=64)

    Args:
        checkpoint: a directory, local or gs://, or a hub id `owner/name[@revision]`, of
            a Gemma 3 or Qwen3 with a chat template. Its parameters are sharded over all
            devices.
        settings: fields of `blue.hub.recipe.ProfilerRecipe` that shall differ from the
            export's, or from the defaults for a directory that is no export.

    Raises:
        UserError: no such checkpoint, a file that is missing or broken, an unsupported
            model, or an impossible setting.
    """
    place = _fetch(checkpoint)
    of = recipe.of_profiler(place.directory, settings, ProfilerRecipe())
    mesh = make_mesh(1, -1, 1)
    model = _load_model(place, place.directory, mesh, of.params_dtype, head=True)
    return Profiler(of, model, mesh)


# --- the encoder


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model that turns texts into vectors; from `load_encoder`."""

    recipe: EncoderRecipe  # wording and lengths
    query_prompt: str  # before every query
    model: Model = dataclasses.field(repr=False)
    mesh: Mesh = dataclasses.field(repr=False)

    @property
    def width(self) -> int:
        """E, the length of a vector."""
        return self.model.cfg.width

    def embed(
        self, texts: Sequence[str | Profile], kind: str = "query"
    ) -> Float[np.ndarray, "n E"]:
        """Unit vectors [n, E], float32, of n texts in order; dot products are cosines.

            users = encoder.embed(["The user likes quiet books."])
            items = encoder.embed(["A title", "Another title"], kind="item")

        The first call compiles. Texts longer than `recipe.max_tokens` are cut at their
        end.

        Args:
            texts: strings, embedded as they are. A `Profile` among queries becomes the
                view "profile alone" of training; see `user_texts` for histories.
            kind: "query" puts the query prompt before each text; "item" cleans a text
                as readers of logs do and puts nothing before it.

        Raises:
            UserError: another kind, something that is no text, or broken weights.
        """
        if kind not in KINDS:
            raise UserError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
        _check_texts("texts", texts)
        if kind == "query":
            inputs = [t if isinstance(t, str) else self._view(t, []) for t in texts]
            inputs = [self.query_prompt + text for text in inputs]
        else:
            inputs = [clean_line(_text(t), ITEM_CHARS) for t in texts]
        if not inputs:
            return np.zeros((0, self.width), np.float32)
        of = self.recipe
        rows = _whole_batch(of.batch_size, self.mesh)
        run = make_embed_programs(  # compiles what it has not compiled yet
            self.model.cfg,
            self.mesh,
            Precision(of.params_dtype, of.compute_dtype),
            lengths=of.row_lengths,
            batch_size=rows,
        )
        embedder = make_embedder(
            self.model.cfg,
            self.model.tokenizer,
            self.mesh,
            run,
            max_tokens=of.max_tokens,
            batch_size=rows,
        )
        step = ITEMS_A_CALL
        parts = [inputs[first : first + step] for first in range(0, len(inputs), step)]
        vectors = [embedder.embed(self.model.params, part) for part in parts]
        if not all(np.isfinite(part).all() for part in vectors):
            raise UserError(f"{self.model.name}: its vectors are not finite")
        return np.concatenate(vectors)

    def user_texts(
        self,
        profiles: Sequence[str | Profile],
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """The text of each user for `embed`, worded as in training.

            encoder.embed(encoder.user_texts(profiles, histories))

        Args:
            profiles: one a user.
            histories: titles of each user, oldest first. The newest
                `recipe.recent_items` are put before the profile, fewer where they do
                not fit. None: the profiles alone.
        """
        _check_texts("profiles", profiles)
        if histories is None:
            histories = [[]] * len(profiles)
        recent = clean_histories(histories)
        check_length("histories", recent, len(profiles))
        pairs = zip(profiles, recent, strict=True)
        return [self._view(profile, titles) for profile, titles in pairs]

    def _view(self, profile: str | Profile, titles: list[str]) -> str:
        query_format = QueryFormat(
            templates=TEMPLATES[self.recipe.prompt_style],
            prefix=self.query_prompt,
            recent_items=self.recipe.recent_items,
            num_tokens=lambda text: len(self.model.tokenizer.pooled(text)),
            max_tokens=self.recipe.max_tokens,
        )
        text = history_profile_query(query_format, titles, _text(profile))
        return text.removeprefix(self.query_prompt)


def load_encoder(
    checkpoint: str | os.PathLike, *, query_prompt: str | None = None, **settings: Any
) -> Encoder:
    """The encoder of an export, of a Hugging Face directory or of the hub.

        load_encoder("runs/quickstart/export/encoder")

    Args:
        checkpoint: a directory, local or gs://, or a hub id `owner/name[@revision]`, of
            a Qwen3 or Gemma 3 whose last token is pooled.
        query_prompt: the prefix of a query; None: that of the checkpoint's
            config_sentence_transformers.json, else empty.
        settings: fields of `blue.hub.recipe.EncoderRecipe` that shall differ from the
            export's, or from the defaults for a directory that is no export.

    Raises:
        UserError: no such checkpoint, a file that is missing or broken, an unsupported
            model, or an impossible setting.
    """
    place = _fetch(checkpoint)
    layout = sentence_layout.read(place.directory)
    default = EncoderRecipe()
    if layout.max_tokens:
        limit = min(default.max_tokens, layout.max_tokens)
        lengths = [n for n in default.row_lengths if n <= limit] or [limit]
        default = default._replace(max_tokens=limit, row_lengths=tuple(lengths))
    of = recipe.of_encoder(place.directory, settings, default)
    if query_prompt is None:
        query_prompt = layout.query_prompt or ""
    mesh = make_mesh(1, -1, 1)
    model = _load_model(place, layout.transformer, mesh, of.params_dtype, head=False)
    return Encoder(of, query_prompt, model, mesh)


# --- logs and ranking


def read_log(
    path: str | os.PathLike,
    name: str = "table",
    *,
    title_template: str = "{title}",
    item_template: str = "{title}",
    max_bad_fraction: float = 0.01,
    **table_fields: str,
) -> Log:
    """The interaction log in a folder: `log.titles`, `log.history(user_id)`, arrays.

        read_log("shop", events="clicks.csv", items="products.csv", user_id="shopper")
        read_log("ml-32m", "movielens")

    Args:
        path: the folder.
        name: "table", a file of events and a file of items with any columns, or a
            public format: movielens, amazon_reviews_2023, google_local.
        title_template: a history line, such as "{title} ({year})", from item columns.
        item_template: likewise, what the encoder reads of an item.
        max_bad_fraction: of a file's rows that may be broken, in [0, 1].
        table_fields: of a table the files `events` and `items`, and their `separator`
            (guessed). Also unusual names of the events' columns `user_id`, `item_id`,
            `timestamp` and `rating` (empty: no ratings), and of `items_item_id` of the
            items.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    if name not in ("table", *READERS):
        known = ", ".join(("table", *READERS))
        raise UserError(f"name is {name!r}; known are {known}")
    known = TABLE | COLUMNS if name == "table" else {}
    for field in table_fields:
        if field not in known:
            raise UserError(
                f"read_log does not know {field} for name={name!r}"
                + (f"; known are {', '.join(known)}" if known else "")
            )
    files = {key: table_fields.get(key, usual) for key, usual in TABLE.items()}
    columns = {key: table_fields.get(key, usual) for key, usual in COLUMNS.items()}
    layout = table.TableLayout(**files, columns=columns)
    read = functools.partial(table.read, layout=layout)
    try:
        return (READERS | {"table": read})[name](
            os.path.expanduser(os.fspath(path)),
            title_template=title_template,
            item_template=item_template,
            max_bad_fraction=max_bad_fraction,
        )
    except UserError as error:  # the message names flags; here they are arguments
        message = re.sub(r"(--config\.)?\bdata\.(columns\.)?(?=[a-z])", "", str(error))
        raise UserError(message) from None


def rank(
    encoder: Encoder,
    queries: Sequence[str | Profile] | Float[np.ndarray, "n E"],
    items: Sequence[str] | Float[np.ndarray, "m E"],
    k: int = 10,
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k of m items that are nearest to each of n queries.

        best, scores = rank(encoder, profiles, log.texts)
        print([log.titles[i] for i in best[0]])

    Args:
        queries: texts or profiles as in `encoder.embed`, or their vectors.
        items: texts, or their vectors from `encoder.embed(texts, kind="item")`.
        k: 1 to m.

    Returns:
        Places in `items` [n, k], nearest first, and cosines [n, k] in [-1, 1]. Of equal
        scores the earlier item is first.

    Raises:
        UserError: an impossible k, or vectors of another width.
    """
    query_vectors = _vectors(encoder, queries, "query")
    item_vectors = _vectors(encoder, items, "item")
    if type(k) is not int or not 1 <= k <= len(item_vectors):
        raise UserError(
            f"k is {k!r}, must be 1 to {len(item_vectors)}, the items given"
        )
    best = np.zeros((len(query_vectors), k), np.int64)
    scores = np.zeros((len(query_vectors), k), np.float32)
    for first in range(0, len(query_vectors), QUERIES_A_BLOCK):
        block = slice(first, first + QUERIES_A_BLOCK)
        cosines = query_vectors[block] @ item_vectors.T
        best[block] = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        scores[block] = np.take_along_axis(cosines, best[block], axis=1)
    return best, scores


# --- what both models share


def _fetch(checkpoint: str | os.PathLike) -> Source:
    return fetch(os.path.expanduser(os.fspath(checkpoint)), "checkpoint")


def _load_model(
    source: Source, directory: str, mesh: Mesh, dtype: str, *, head: bool
) -> Model:
    """The model in `directory`; small files are read and checked first."""
    cfg, tokenizer = read_config(directory), load_tokenizer(directory)
    check_vocabulary(cfg, tokenizer, source.checkpoint)
    cfg, params = load_decoder(directory, mesh, dtype=dtype, head=head)
    return Model(cfg, params, tokenizer, source.checkpoint, source=source)


def _whole_batch(size: int, mesh: Mesh) -> int:
    """`size` rounded up to a multiple of the batch shards."""
    shards = batch_shards(mesh)
    return -(-size // shards) * shards


# --- arguments


def _text(text: str | Profile) -> str:
    return text if isinstance(text, str) else text.text


def _check_texts(name: str, texts: Sequence[str | Profile]) -> None:
    """Raises `UserError` for one text in place of several, and for what is no text."""
    if isinstance(texts, str | Profile):
        raise UserError(f"{name} is one text, must be a list of texts")
    for place, text in enumerate(texts):
        if not isinstance(text, str | Profile):
            raise UserError(
                f"{name}[{place}] is {type(text).__name__}, must be text or a Profile"
            )


def _vectors(encoder: Encoder, given: Any, kind: str) -> Float[np.ndarray, "n E"]:
    """`given` itself where it is vectors, else its embedding."""
    if not isinstance(given, np.ndarray):
        return encoder.embed(given, kind)
    if given.ndim != 2 or given.shape[1] != encoder.width:
        raise UserError(
            f"{kind} vectors have shape {list(given.shape)}, must be [n, "
            f"{encoder.width}]"
        )
    return np.asarray(given, np.float32)
