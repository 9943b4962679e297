"""Words as they are written, and folded for comparing."""

from blue.text import words


def test_the_two_readings_of_a_text():
    text = "It's a Sci-Fi, R&B of 2001"
    written = ["It's", "a", "Sci-Fi", "R&B", "of", "2001"]
    assert words.WRITTEN_WORD.findall(text) == written
    assert words.content_words(text) == ["It's", "Sci-Fi"]  # of letters, three or more
    folded = ["it", "s", "a", "sci", "fi", "r", "b", "of", "2001"]
    assert words.folded_words(text) == folded
    assert words.word_set("The Sci-Fi") == {"the", "sci-fi"}
    assert words.content_words("红茶 the of 茶") == ["红茶"]  # two are enough there


def test_a_phrase_is_cut_between_words():
    assert words.shorten("short") == "short"
    long = "word " * 20
    assert words.shorten(long) == ("word " * 12).rstrip()
    assert words.shorten("x" * 100) == "x" * words.PHRASE_CHARS


def test_words_of_scripts_with_and_without_spaces():
    assert words.folded_words("Crème-brûlée, CAFÉ’s 2nd") == [
        *("crème", "brûlée", "café", "s", "2nd")
    ]
    assert words.folded_words("Ｔｅｎｔ ﬁne") == ["tent", "fine"]  # NFKC, as titles are
    assert words.folded_words("我喜欢 red咖啡") == ["我", "喜", "欢", "red", "咖", "啡"]
    assert words.folded_words("君の名は") == list("君の名は")
    assert words.folded_words("좋은 커피") == ["좋은", "커피"]  # Korean has spaces


def test_sentences_end_at_stops_and_lines_but_not_after_initials():
    text = "Likes J. Smith, Dr. No and 2.5 stars. Dislikes it!  Why?\nA line\n \n..."
    assert words.sentences(text) == [
        *("Likes J. Smith, Dr. No and 2.5 stars.", "Dislikes it!", "Why?", "A line")
    ]
    assert words.sentences("他喜欢茶。她不喜欢！") == ["他喜欢茶。", "她不喜欢!"]


def test_ngrams_are_all_runs_in_order():
    assert words.ngrams("abcd", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert words.ngrams("ab", 2) == [("a", "b")] and words.ngrams("ab", 3) == []
