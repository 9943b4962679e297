"""A tokenizer trained on a few lines."""

import random

import pytest

from blue.errors import UserError
from blue.text.tokenizer import train_tokenizer
from tests.helpers import made_up_text


@pytest.fixture(scope="module")
def trained():
    return made_up_text.tokenizer_of_lines()


def test_frequent_words_are_one_piece(trained):
    words = made_up_text.words()
    pieces = [len(trained.encode(word)) for word in words]
    assert len(words) == 600 and sum(pieces) / len(pieces) < 1.05
    assert trained.vocab_size <= 1024


def test_profile_splits_into_words_and_punctuation(trained):
    text = "The user likes tea, tea and tea."
    parts = [trained.decode([i]) for i in trained.encode(text)]
    assert parts == ["The", "user", "likes", "tea", ",", "tea", "and", "tea", "."]


@pytest.mark.parametrize(
    "text",
    [
        "The user likes jazz, piano and tea.",
        "Toy Story (1995)",
        "Café Müller — “Blue” 42%",
        "プライベート・ライアン 2004 😀",
        "(a) [b] {c} a_b c-d e's",
        "",
        "one\ntwo",
        "[A] first\n[B] second",
        "<start_of_turn>hi<pad>",
    ],
)
def test_clean_lines_decode_to_themselves(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_training_is_deterministic(trained):
    lines = made_up_text.lines()
    again = train_tokenizer(lines, vocab_size=1024)
    assert again._json == trained._json
    assert again.fingerprint == trained.fingerprint
    other = train_tokenizer(lines[:100], vocab_size=1024)
    assert other.fingerprint != trained.fingerprint


def test_many_rare_characters_become_bytes():
    rng = random.Random(3)
    han = [chr(c) for c in range(0x4E00, 0x5800)]
    texts = ["".join(rng.choices(han, k=10)) for _ in range(500)]
    tokenizer = train_tokenizer(texts, vocab_size=512)
    assert tokenizer.vocab_size <= 512
    for text in texts[:50]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_refuses_too_little():
    with pytest.raises(UserError, match="vocab_size=100 is too small"):
        train_tokenizer(["a"], vocab_size=100)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], vocab_size=1024)
