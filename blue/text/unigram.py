"""Training a small tokenizer: a SentencePiece unigram model, run by `tokenizers`.

Frequent words are one piece, and punctuation is always a piece of its own. Unknown
characters are encoded as bytes, so every line without double spaces decodes to itself.
Control tokens are Gemma's: letters and underscores in angle brackets. Punctuation is
split off first, so no text contains one.
"""

import string
from collections import Counter
from collections.abc import Iterable
from io import BytesIO

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from blue.errors import UserError

# Their ids are 0, 1, ... in this order; 256 bytes follow.
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
PAD, EOS, BOS, UNK, START, END = CONTROL

_SPACE = "\u2581"  # SentencePiece's visible space
_NORMALIZER = normalizers.Sequence(
    [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
)
_PRE_TOKENIZER = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("isolated"),
        pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never"),
    ]
)
_DECODER = decoders.Sequence(
    [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),  # the space that Prepend added
    ]
)


def train(texts: Iterable[str], *, vocab_size: int) -> tokenizers.Tokenizer:
    """A tokenizer of at most `vocab_size` ids, the same for the same texts.

    It appends `EOS` to a text if special tokens are requested.

    Raises:
        UserError: no text, or `vocab_size` below 512.
    """
    if vocab_size < 512:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} is too small: {len(CONTROL)} control "
            f"tokens, 256 bytes and 26 letters come first; use 512 or more"
        )
    words: Counter[str] = Counter()
    for text in texts:
        spaced = _NORMALIZER.normalize_str(text)
        words.update(word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(spaced))
    if not words:
        raise UserError(
            "there is no text to train a tokenizer on: all titles are empty"
        )
    scores = _with_letters(
        _train_pieces(words, vocab_size=vocab_size - len(string.ascii_uppercase))
    )
    # Rounded, because the JSON reader of `tokenizers` loses the last bits.
    vocab = [(piece, round(score, 6)) for piece, score in scores.items()]
    backend = tokenizers.Tokenizer(
        models.Unigram(vocab, unk_id=CONTROL.index(UNK), byte_fallback=True)
    )
    backend.normalizer = _NORMALIZER
    backend.pre_tokenizer = _PRE_TOKENIZER
    backend.decoder = _DECODER
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, CONTROL.index(EOS))]
    )
    backend.add_special_tokens(list(CONTROL))
    return backend


def _train_pieces(words: Counter[str], *, vocab_size: int) -> dict[str, float]:
    """Pieces and their log-probabilities, in order of id."""
    import sentencepiece

    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    # Characters get at most a quarter of the vocabulary; rare ones become bytes.
    common = {c for c, _ in characters.most_common(vocab_size // 4)} - {"\t", "\n"}
    known: Counter[str] = Counter()
    for word, count in words.items():
        known["".join(c for c in word if c in common)] += count
    # A word becomes a candidate piece only if different characters follow it: the end
    # of a line and a space.
    lines = (
        line
        for word, count in sorted(known.items(), key=lambda item: (-item[1], item[0]))
        for line in (f"{word}{_SPACE}\t1", f"{word}\t{count - 1}")
        if word and not line.endswith("\t0")
    )
    model = BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        input_format="tsv",
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        max_sentencepiece_length=32,
        character_coverage=1.0,
        normalization_rule_name="identity",  # texts are cleaned where they are read
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=PAD,
        eos_piece=EOS,
        bos_piece=BOS,
        unk_piece=UNK,
        control_symbols=[START, END],
        num_threads=1,  # more threads would sum in another order
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = {trained.id_to_piece(i): trained.get_score(i) for i in range(len(trained))}
    assert tuple(pieces)[: len(CONTROL)] == CONTROL
    return pieces


def _with_letters(scores: dict[str, float]) -> dict[str, float]:
    """`scores`, with every capital letter as one piece at the start of an answer.

    A new piece scores a little more than its two parts did, so no other word changes.
    """
    lowest = min(scores.values())
    letters = {
        _SPACE + letter: scores.get(_SPACE, lowest) + scores.get(letter, lowest) + 0.01
        for letter in string.ascii_uppercase
    }
    return scores | {k: v for k, v in letters.items() if k not in scores}
