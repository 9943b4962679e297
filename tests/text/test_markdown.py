"""Text that no renderer reads as markup; tables."""

from blue.text import markdown
from blue.text.markdown import escape, summary_table

HOSTILE = (
    "| a | `b`\n# head <script>x</script> [c](http://d) ![e](f) *g* $h$ \\|\u202ei\x07"
)


def test_escape_leaves_nothing_that_markdown_or_html_reads():
    shown = escape(HOSTILE)
    assert not set(shown.replace("&#", "").replace(";", "")) & set("|`*[]<>!$\\\n\x07")
    assert "\u202e" not in shown and shown.count("#") == shown.count("&#")
    assert escape("plain text, 7 words; it's (all) fine.") == (
        "plain text, 7 words; it's (all) fine."
    )
    assert escape("a" * 5000) == "a" * markdown.MAX_CHARS + "..."


def test_summary_table():
    table = summary_table([("blue", 12, 0.25), ("all_history", 3, 1.0)], "abc")
    assert table.split("\n") == [
        "a             b       c",
        "-----------  --  ------",
        "blue         12  0.2500",
        "all_history   3  1.0000",
    ]
