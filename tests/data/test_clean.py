""""""

from blue.data.clean import clean_line


def test_clean_line_shows_all_there_is():
    dirty = (
        "a\u200b\u202e b\x00\n\tc \U000e0041 \ud800 ＜turn＞ e\u200b\u0301\ufe0f \u3164"
    )
    assert clean_line(dirty) == "a b c <turn> \u00e9"
    assert clean_line(clean_line(dirty)) == clean_line(dirty)
    assert clean_line("ab " * 200, max_chars=6) == "ab ab"
    assert clean_line("emoji 👍🏽 stays, naïve 東京") == "emoji 👍🏽 stays, naïve 東京"
