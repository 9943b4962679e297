"""Item templates compared by what an encoder makes of them."""

import pytest

from tools import choose_template


@pytest.mark.slow
def test_every_template_has_a_row_of_its_own_numbers(tmp_path, capsys):
    titles = [f"red chair {n},19{n:02},wood;oak" for n in range(60)]
    events = [
        f"u{user},i{(user * 7 + n) % 60},{1_700_000_000 + 86_400 * n},{n % 5 + 1}"
        for user in range(60)
        for n in range(14)
    ]
    header = "item_id,title,year,kind"
    rows = [f"i{n},{title}" for n, title in enumerate(titles)]
    (tmp_path / "items.csv").write_text("\n".join([header, *rows]))
    header = "user_id,item_id,timestamp,rating"
    (tmp_path / "events.csv").write_text("\n".join([header, *events]))
    templates = ["{title}", "{title} ({year}), {kind}"]
    (tmp_path / "templates").write_text("\n".join(templates) + "\n")
    choose_template.main(
        [
            *("--config=configs/base.py:tiny", f"--workdir={tmp_path}/run"),
            *("--config.data.name=table", f"--config.data.path={tmp_path}"),
            *("--config.data.eval_negatives=20", f"--templates={tmp_path}/templates"),
        ]
    )
    rows = [
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.split("\n")
    ]
    rows = rows[2:-1]  # after the header and its rule
    assert [row[0] for row in rows] == [f"`{template}`" for template in templates]
    for _, vectors, pseudo_item, mean in rows:
        both = [float(cell.split()[0]) for cell in (vectors, pseudo_item)]
        assert all(0 < value < 1 for value in both)
        assert float(mean) == pytest.approx(sum(both) / 2, abs=1e-3)
    assert rows[0][1:] != rows[1][1:]  # the wording matters
