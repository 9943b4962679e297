"""The licence of a model, and the files that go along."""

import pytest

from blue.hub import card
from blue.hub.source import Source
from blue.models import gemma3, qwen3


@pytest.mark.parametrize(
    "readme, family, expected",
    [
        ("---\nlicense: apache-2.0\n---\n# x", qwen3, {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n",
            gemma3,
            {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [mit, gpl]\n---\n", qwen3, card.UNKNOWN),
        (
            "---\nlicense: !!python/object/apply:os.system [x]\n---\n",
            gemma3,
            gemma3.LICENCE,
        ),
        ("---\n- a\n---\n", qwen3, card.UNKNOWN),
        ("---\nlicense: \"a\\nb: c\"\n---\n", qwen3, card.UNKNOWN),
        ("no front matter", gemma3, gemma3.LICENCE),
        (None, qwen3, card.UNKNOWN),
    ],
)  # fmt: skip
def test_the_licence_is_the_sources(readme, family, expected, tmp_path):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    source = Source("x", "", str(tmp_path))
    assert card.licence(source, unstated=family.LICENCE) == expected
    assert card.licence(Source(), unstated=family.LICENCE) == {}


def test_licence_files_are_copied(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "config.json"):
        (source / name).write_text(name)
    (source / "LICENSES").mkdir()
    card.copy_notices(Source("x", "", str(source)), out, notice=qwen3.NOTICE)
    assert sorted(p.name for p in out.iterdir()) == [
        "LICENSE", "NOTICE.txt", "USE_POLICY.md",
    ]  # fmt: skip
