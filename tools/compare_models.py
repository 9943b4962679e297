"""How far are two models apart? Log-probabilities or embeddings of given texts.

    python tools/compare_models.py A B --texts=FILE [--engine-b=transformers] [...]

A and B are Hugging Face directories or hub ids, or checkpoints of runs:

    RUN             what its stage profiler trained
    RUN:STAGE       the best of a stage: profiler, warm_start or encoder
    RUN:STAGE@STEP  one step of it

Engines are blue, transformers and sentence_transformers (extra `parity`): one directory
under two engines shows how exactly BLUE computes what they compute. Of causal models
the log-probabilities of every next token, over the whole vocabulary, are compared; of
encoders the vectors. Causal models get the tokens of A, encoders each their own. Texts
are lines, or (.jsonl) JSON lines with "text". Exit code 1 if --max-difference is
exceeded, 2 on mistakes, answers that are not finite among them.
"""

import argparse
import functools
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # BLUE from this clone
from blue.errors import UserError
from blue.hub import sentence_layout
from blue.hub.directory import load_decoder, read_config
from blue.hub.model import Model
from blue.hub.source import fetch
from blue.inference.pad import pad_left
from blue.models import decoder, encoder, lora
from blue.models.decoder import DecoderConfig
from blue.models.params import shapes_of
from blue.runtime.progress import Progress
from blue.runtime.sharding import make_mesh
from blue.sources.data import load_log
from blue.sources.encoder import load_encoder
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler_base
from blue.sources.role import add_adapters, find_checkpoint, stage_checkpoints
from blue.sources.text import load_role_tokenizer
from blue.text.tokenizer import Tokenizer, load_tokenizer
from blue.training import optimizers, session
from blue.workdir import record

ENGINES = ("blue", "transformers", "sentence_transformers")
ROLE_OF = {"profiler": "profiler", "warm_start": "profiler", "encoder": "encoder"}
PIECE = 64  # positions whose log-probabilities are in memory at once


class Row(NamedTuple):
    """A text and its tokens; made-up tokens have no text."""

    text: str
    ids: list[int]


class Side(NamedTuple):
    """One of the two: its answers to a row, [positions or 1, size] float32, in pieces.

    For causal models size is the vocabulary, for encoders the width of the vectors.
    """

    size: int
    answers: Callable[[Row], Iterator[np.ndarray]]


# --- which model


def open_model(spec: str, role: str, dtype: str) -> Model:
    """The model and tokenizer that `spec` names, under BLUE."""
    run, _, rest = spec.partition(":")
    if is_run(spec):
        stage, _, step = (rest or role).partition("@")
        return model_of_run(run, stage, step)
    mesh, directory = make_mesh(1, -1, 1), directory_of(spec, role)
    cfg, params = load_decoder(directory, mesh, dtype=dtype, head=role == "profiler")
    tokenizer: Any = find_tokenizer(spec, role)
    return Model(cfg, params, tokenizer, spec)


def directory_of(spec: str, role: str) -> str:
    """Where the weights of a Hugging Face directory or hub id are."""
    directory = fetch(spec, "the model").directory
    return (
        sentence_layout.read(directory).transformer if role == "encoder" else directory
    )


def model_of_run(run: str, stage: str, step: str) -> Model:
    """What a stage of a run trained: its best, or the state after a step."""
    if stage not in ROLE_OF:
        raise UserError(f"{run}:{stage}: the stages are {', '.join(ROLE_OF)}")
    if step and not step.isdecimal():
        raise UserError(f"{run}:{stage}@{step}: a step is a number")
    config = record.load(run)
    opened = open_run(config, run)
    mesh = opened.mesh
    load = load_encoder if stage == "encoder" else load_profiler_base
    start = load(opened, stage=stage)
    model = add_adapters(config, ROLE_OF[stage], start, mesh, stage=stage)
    frozen, trained = lora.split(model.params)
    shapes = shapes_of(trained)
    checkpoints = stage_checkpoints(config, run, stage)
    if step:
        sections = {"encoder": "train_encoder", "warm_start": "warm_start"}
        section = config[sections[stage]] if stage in sections else config
        _, optimizer = session.optimizer_of(config, section, b2=config.adam_b2)
        abstract = optimizers.abstract_state(shapes, optimizer, mesh)
        trained = checkpoints.restore(abstract, int(step))[0].params
    else:
        trained = checkpoints.restore_best(shapes)[0]
    return model._replace(params=lora.join(frozen, trained))


def is_run(spec: str) -> bool:
    """Whether a run is named, not a directory of a model or a hub id."""
    return (Path(spec.partition(":")[0]) / "checkpoints").is_dir()


def role_of(spec: str) -> str:
    """Encoder where the directory or the stage says so, else profiler."""
    stage = spec.partition(":")[2].partition("@")[0]
    has_modules = (Path(spec) / "modules.json").exists()
    return "encoder" if has_modules or stage == "encoder" else "profiler"


# --- engines


def open_side(spec: str, role: str, engine: str, dtype: str, length: int) -> Side:
    """The model under the engine; rows have up to `length` tokens."""
    if engine == "blue":
        return blue_side(open_model(spec, role, dtype), role, dtype, length)
    try:
        import torch
    except ImportError:
        raise UserError(f"engine {engine} needs the extra `parity` (torch)") from None
    make = {
        ("transformers", "profiler"): transformers_logprobs,
        ("transformers", "encoder"): transformers_vectors,
        ("sentence_transformers", "encoder"): sentence_transformers_vectors,
    }
    if (engine, role) not in make:
        raise UserError(
            f"engine {engine} has no log-probabilities; take --role=encoder"
        )
    if is_run(spec):
        raise UserError(
            f"engine {engine} reads no checkpoints of runs; in place of {spec} give "
            "the directory of its export"
        )
    whole = engine == "sentence_transformers"
    directory = (
        fetch(spec, "the model").directory if whole else directory_of(spec, role)
    )
    return make[engine, role](directory, getattr(torch, dtype))


@functools.cache  # two models of the same shapes share their programs
def make_embed(cfg: DecoderConfig, dtype: str) -> Any:
    """(params, tokens [1 T], mask) -> vectors [1 E]."""
    return jax.jit(lambda p, t, m: encoder.embed(p, cfg, t, m, dtype=dtype))


@functools.cache
def make_forward(cfg: DecoderConfig, dtype: str) -> Any:
    """(params, tokens [1 T], mask) -> hidden states [T D]."""
    return jax.jit(lambda p, t, m: decoder.forward(p, cfg, t, m, dtype=dtype)[0])


@jax.jit
def score(params: Any, hidden: jax.Array) -> jax.Array:
    """Log-probabilities [T V] of hidden states [T D]."""
    head = decoder.head(params).astype(hidden.dtype)
    wide = {"preferred_element_type": jnp.float32}
    return jax.nn.log_softmax(jnp.einsum("TD,VD->TV", hidden, head, **wide))


def blue_side(model: Model, role: str, dtype: str, length: int) -> Side:
    """BLUE's own forward passes; every row is padded on the left to `length`."""
    params, cfg = model.params, model.cfg

    def padded(row: Row) -> tuple[np.ndarray, np.ndarray]:
        return pad_left([row.ids], length, 0)

    if role == "encoder":
        embed = make_embed(cfg, dtype)

        def vectors(row: Row) -> Iterator[np.ndarray]:
            yield np.asarray(embed(params, *padded(row)))

        return Side(cfg.width, vectors)
    forward = make_forward(cfg, dtype)

    def logprobs(row: Row) -> Iterator[np.ndarray]:
        hidden = forward(params, *padded(row))[length - len(row.ids) :]
        for start in range(0, len(row.ids), PIECE):
            yield np.asarray(score(params, hidden[start : start + PIECE]))

    return Side(cfg.vocab_size, logprobs)


def transformers_logprobs(spec: str, dtype: Any) -> Side:
    """transformers, a row at a time without padding."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": dtype, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(spec, **options).eval()
    head = model.get_output_embeddings()

    @torch.no_grad()
    def logprobs(row: Row) -> Iterator[np.ndarray]:
        hidden = model.base_model(input_ids=torch.tensor([row.ids]))[0][0]
        for start in range(0, len(row.ids), PIECE):
            logits = head(hidden[start : start + PIECE]).float()
            yield logits.log_softmax(-1).numpy()

    return Side(head.weight.shape[0], logprobs)


def transformers_vectors(spec: str, dtype: Any) -> Side:
    """transformers, pooled at the last token."""
    import torch
    from transformers import AutoModel

    options = {"dtype": dtype, "local_files_only": True}
    model = AutoModel.from_pretrained(spec, **options).eval()

    @torch.no_grad()
    def vectors(row: Row) -> Iterator[np.ndarray]:
        hidden = model(input_ids=torch.tensor([row.ids]))[0][:, -1].float()
        yield torch.nn.functional.normalize(hidden, dim=-1).numpy()

    return Side(model.config.hidden_size, vectors)


def sentence_transformers_vectors(spec: str, dtype: Any) -> Side:
    """sentence-transformers, which makes its own tokens of the text."""
    from sentence_transformers import SentenceTransformer

    options = {"model_kwargs": {"dtype": dtype}, "local_files_only": True}
    model = SentenceTransformer(spec, device="cpu", **options)
    size = model.get_embedding_dimension()
    assert size is not None

    def vectors(row: Row) -> Iterator[np.ndarray]:
        yield model.encode([row.text], show_progress_bar=False).astype(np.float32)

    return Side(size, vectors)


# --- comparing


def told(rows: Sequence[Row], name: str) -> Iterator[tuple[int, Row]]:
    """Numbered rows; progress is told where it takes long."""
    progress = Progress(name, first=0, total=len(rows), unit="text", patience_s=10.0)
    for number, row in enumerate(rows):
        yield number, row
        progress.update(number, {})
    progress.end()


def finite_answers(side: Side, rows: Sequence[Row], name: str) -> Iterator[tuple]:
    """(number of the row, position, piece) of all pieces of answers, told.

    A piece that is not finite is refused: no difference from it is a number.
    """
    for number, row in told(rows, name):
        position = 0
        for piece in side.answers(row):
            if not np.isfinite(piece).all():
                bad = position + int((~np.isfinite(piece).all(-1)).argmax())
                raise UserError(
                    f"{name}: text {number}, position {bad}: the answer is not finite; "
                    "the weights are broken, or the dtype is too small for them"
                )
            yield number, position, piece
            position += len(piece)


def compare_logprobs(
    a: np.ndarray, side_b: Side, rows: Sequence[Row]
) -> dict[str, float | list]:
    """Differences of log-probabilities [positions V] of all rows, in one stream."""
    total = agree = sure = chosen_sum = chosen_count = at = 0
    largest, chosen_max, worst = -1.0, 0.0, []
    for number, position, piece in finite_answers(side_b, rows, "B"):
        other = a[at : at + len(piece)]
        gap = np.abs(other - piece)
        total += gap.sum(dtype=np.float64)
        agree += (other.argmax(-1) == piece.argmax(-1)).sum()
        sure += np.exp(other.max(-1)).sum(dtype=np.float64)
        if gap.max() > largest:
            t, v = np.unravel_index(gap.argmax(), gap.shape)
            largest = float(gap[t, v])
            values = [float(other[t, v]), float(piece[t, v])]
            worst = [number, position + int(t), int(v), *values]
        after = rows[number].ids[position + 1 : position + 1 + len(piece)]
        of_next = gap[np.arange(len(after)), after]
        chosen_sum += of_next.sum(dtype=np.float64)
        chosen_count += len(after)
        chosen_max = max(chosen_max, float(of_next.max(initial=0.0)))
        at += len(piece)
    return {
        "max_difference": largest,
        "mean_difference": float(total / (at * a.shape[1])),
        "max_difference_of_next_token": chosen_max,
        "mean_difference_of_next_token": float(chosen_sum / max(chosen_count, 1)),
        "top1_agreement": float(agree / at),
        "mean_probability_of_top1": float(sure / at),  # near 1: agreement says little
        "positions": at,
        "worst: text, position, token, a, b": worst,
    }


def compare_vectors(
    a: np.ndarray, side_b: Side, rows: Sequence[Row]
) -> dict[str, float | list]:
    """Differences of unit vectors [texts E]."""
    b = np.concatenate([piece for *_, piece in finite_answers(side_b, rows, "B")])
    gap, cosine = np.abs(a - b), (a * b).sum(-1)
    nearest = [(x @ x.T - 4 * np.eye(len(x))).argmax(-1) for x in (a, b)]
    row, column = np.unravel_index(gap.argmax(), gap.shape)
    values = [float(a[row, column]), float(b[row, column])]
    return {
        "max_difference": float(gap.max()),
        "mean_difference": float(gap.mean()),
        "least_cosine": float(cosine.min()),
        "top1_agreement": float((nearest[0] == nearest[1]).mean()),  # nearest text
        "texts": len(a),
        "worst: text, component, a, b": [int(row), int(column), *values],
    }


def compare(
    specs: Sequence[str],
    rows: Sequence[Sequence[Row]],
    *,
    role: str,
    engines: Sequence[str],
    dtypes: Sequence[str],
) -> dict[str, Any]:
    """All figures. One model is in memory at a time; the answers of A wait on disk."""
    count = len(rows[0])
    positions = sum(len(r.ids) for r in rows[0]) if role == "profiler" else count
    longest = [max(len(row.ids) for row in own) for own in rows]
    with tempfile.TemporaryDirectory() as scratch:
        side = open_side(specs[0], role, engines[0], dtypes[0], longest[0])
        shape = (positions, side.size)
        check_room(4 * positions * side.size, scratch)
        a = np.memmap(f"{scratch}/a.f32", np.float32, "w+", shape=shape)
        at = 0
        for *_, piece in finite_answers(side, rows[0], "A"):
            a[at : at + len(piece)] = piece
            at += len(piece)
        size = side.size
        del side
        gc.collect()
        side = open_side(specs[1], role, engines[1], dtypes[1], longest[1])
        if side.size != size:
            raise UserError(
                f"{specs[0]} has {size} {'words' if role == 'profiler' else 'numbers'} "
                f"an answer and {specs[1]} {side.size}: they cannot be compared"
            )
        how = compare_logprobs if role == "profiler" else compare_vectors
        return how(a, side, rows[1])


def check_room(size: int, folder: str) -> None:
    """Whether so many bytes fit; a full disk would end the process without a word."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"the answers of A need {size / 1e9:.1f} GB of disk and "
            f"{free / 1e9:.1f} GB are free; take fewer texts, a smaller --max-tokens, "
            "or TMPDIR on another disk"
        )


# --- texts


def read_texts(path: Path) -> list[str]:
    """The lines of a file, or the "text" of JSON lines; empty ones are left out."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts={path}: {error}") from None
    lines = [line for line in lines if line.strip()]
    if path.suffix == ".jsonl":
        lines = [_text_of(line, f"--texts={path}") for line in lines]
    if not lines:
        raise UserError(f"--texts={path}: no text in it")
    return lines


def _text_of(line: str, where: str) -> str:
    try:
        return str(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{where}: {line[:60]!r} is no JSON with "text"') from None


def make_rows(
    tokenizers: Sequence[Tokenizer | None], texts: list[str], role: str, limit: int
) -> list[list[Row]]:
    """The texts as either side gets them; the rows of both belong together."""
    first, second = tokenizers
    if first is None:
        raise UserError("A has no tokenizer; give --random-tokens in place of --texts")
    second = second or first
    differ = first.fingerprint != second.fingerprint
    if differ and role == "profiler":
        if first.vocab_size != second.vocab_size:
            raise UserError(
                f"the tokenizers differ: A's has {first.vocab_size} words and B's "
                f"{second.vocab_size}; log-probabilities need one vocabulary"
            )
        sys.stderr.write("the tokenizers differ: both models get the tokens of A\n")
    elif differ:
        sys.stderr.write("the tokenizers differ: each encoder gets its own tokens\n")
    sides = [first, second if role == "encoder" else first]
    ids = [_tokens(tokenizer, texts, role, limit) for tokenizer in sides]
    both = [
        (Row(text, a), Row(text, b))
        for text, a, b in zip(texts, *ids, strict=True)
        if a and b
    ]
    if not both:
        raise UserError("the texts have no tokens")
    return [list(rows) for rows in zip(*both, strict=True)]


def _tokens(
    tokenizer: Tokenizer, texts: list[str], role: str, limit: int
) -> list[list[int]]:
    if role == "encoder":  # its last token, at which it is pooled, stays
        encoded = tokenizer.pooled_batch(texts)
        return [
            ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:] for ids in encoded
        ]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [(start + ids)[:limit] for ids in tokenizer.encode_batch(texts)]


def random_rows(lengths: str, vocab_size: int) -> list[Row]:
    """Rows of random tokens, of lengths such as "700,180"."""
    counts = lengths.split(",")
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise UserError(f"--random-tokens={lengths}: lengths are such as 700,180")
    rng = np.random.default_rng(0)
    return [Row("", rng.integers(0, vocab_size, int(n)).tolist()) for n in counts]


def find_tokenizer(spec: str, role: str) -> Tokenizer | None:
    """The tokenizer of a side, without its weights where that is possible."""
    run = spec.partition(":")[0]
    if not is_run(spec):
        directory = directory_of(spec, role)
        has_one = any(Path(directory).glob("tokenizer.json*"))
        return load_tokenizer(directory) if has_one else None
    config = record.load(run)
    log = load_log(config, run)
    _, directory = find_checkpoint(config, role)
    return load_role_tokenizer(
        Run(config, run, make_mesh(1, -1, 1), log), role, directory
    )


def run(argv: Sequence[str]) -> int:
    """Compares and prints; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL", help="A, then B")
    parser.add_argument("--texts", type=Path, help="a text a line, or JSON lines")
    lengths = "e.g. 700,180: random tokens of these lengths in place of texts"
    parser.add_argument("--random-tokens", default="", metavar="LENGTHS", help=lengths)
    parser.add_argument("--role", choices=("profiler", "encoder"), help="else: guessed")
    for side in "ab":
        parser.add_argument(f"--engine-{side}", choices=ENGINES, default=ENGINES[0])
        kinds = ("float32", "bfloat16")
        parser.add_argument(f"--dtype-{side}", choices=kinds, default=kinds[0])
    parser.add_argument("--max-tokens", type=int, default=512, help="of a text")
    parser.add_argument("--max-difference", type=float, help="more: exit code 1")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args(argv)
    role = args.role or role_of(args.models[0])
    if bool(args.texts) == bool(args.random_tokens):
        raise UserError("give --texts or --random-tokens, one of the two")
    if args.max_tokens < 1:
        raise UserError(f"--max-tokens={args.max_tokens}: a text has 1 or more")
    if args.texts:
        tokenizers = [find_tokenizer(spec, role) for spec in args.models]
        texts = read_texts(args.texts)
        rows = make_rows(tokenizers, texts, role, args.max_tokens)
    else:
        if is_run(args.models[0]):
            raise UserError("--random-tokens needs a directory as A, no run")
        if "sentence_transformers" in (args.engine_a, args.engine_b):
            raise UserError("engine sentence_transformers needs --texts")
        size = read_config(directory_of(args.models[0], role)).vocab_size
        rows = [random_rows(args.random_tokens, size)] * 2
    started = time.monotonic()
    found = compare(
        args.models,
        rows,
        role=role,
        engines=(args.engine_a, args.engine_b),
        dtypes=(args.dtype_a, args.dtype_b),
    )
    found |= {"tokens": sum(len(row.ids) for row in rows[0])}
    found |= {"seconds": round(time.monotonic() - started, 1)}
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            shown = f"{value:.3g}" if isinstance(value, float) else value
            print(f"{name:<36} {shown}")
    exceeded = args.max_difference is not None and not (
        found["max_difference"] <= args.max_difference
    )
    return 1 if exceeded else 0


def main(argv: Sequence[str]) -> int:
    """`run`, with the user's mistakes told in one line."""
    try:
        return run(argv)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
