"""The tables by hand-worked numbers, and the command."""

from pathlib import Path

import numpy as np
import pytest

from blue.data.examples import Split
from blue.main import main
from blue.stages import prepare
from configs import profiler_amazon_clothing

ROOT = Path(__file__).parents[2]


def split(user, targets, histories, negatives=()):
    """A Split of these; the fields that the figures do not use are empty."""
    empty = dict.fromkeys(Split._fields, np.zeros(0, np.int32))
    used = dict(
        user=np.array(user, np.int32),
        next_item=np.array(targets, np.int32),
        history_items=np.array(sum(histories, []), np.int32),
        negatives=np.array(negatives, np.int32),
    )
    return Split(**empty | used)


def test_figures_of_a_split():
    train = split([4, 4, 7], [3, 5, 3], [[1, 2], [1, 2], [9]])
    assert prepare.split_figures(train) == (5, 2, pytest.approx(5 / 3), 3)
    test = split([1], [0], [[1]], [[2, 3, 1]])
    assert prepare.split_figures(test) == (4, 1, 1.0, 1)
    assert prepare.split_figures(split([], [], [])) == (0, 0, 0.0, 0)


@pytest.mark.parametrize(
    "names, users",
    [
        (["Books.jsonl.gz", "meta_Books.jsonl"], 31_060),
        (["raw_review_Books.jsonl", "raw_meta_Books.jsonl"], 31_060),
        (["raw/review_categories/Electronics.jsonl"], 42_310),
        (["review-New_York.json.gz", "meta-New_York.json.gz"], 72_273),
        (["Books.jsonl", "Electronics.jsonl"], None),  # two domains in one log
        (["Gift_Cards.jsonl"], None),
        ([], None),
    ],
)
def test_the_papers_row_stands_beside_its_own_data_set_alone(tmp_path, names, users):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = profiler_amazon_clothing.get_config().data
    data.path = str(tmp_path)
    paper = prepare.paper_rows(data)
    assert (paper["train"][1] if paper else None) == users
    data.name = "table"
    assert prepare.paper_rows(data) == {}


def command(tmp_path, *flags):
    config = f"--config={ROOT}/configs/quickstart.py:tiny"
    return ["blue", config, f"--workdir={tmp_path}", "--config.stage=prepare", *flags]


def test_the_command(tmp_path, capsys):
    # a slice is expected, and not needed
    flags = "--config.seed=7", "--config.platform=tpu", "--config.num_devices=64"
    assert main(command(tmp_path, *flags)) == 0
    out = capsys.readouterr().out
    assert out.startswith("# ")
    assert "120 users. Left out:" in out
    assert "| train | 300 | 84 |" in out and "| **exclude_window** | 120 |" in out
    assert "| include_window | 120 |" in out and "| rolling | 120 |" in out
    assert len(list((tmp_path / "data").glob("*/manifest.json"))) == 1


def test_a_mistake_is_told_in_one_line(tmp_path, capsys):
    assert main(command(tmp_path, "--config.data.min_interactions=5000")) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ") and not captured.out
