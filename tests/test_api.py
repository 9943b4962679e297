"""`from blue import ...`: what the Python API gives is what the stages give."""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import blue
from blue import api
from blue.errors import UserError
from blue.hub import sentence_layout, source
from blue.hub.recipe import EncoderRecipe, ProfilerRecipe
from blue.inference.generate import Profile
from blue.sources.data import load_log
from blue.sources.encoder import load_encoder, own_encoder
from blue.sources.open_run import open_run
from blue.sources.profiler import load_profiler_base, make_generate_with
from blue.sources.text import prompt_format_of, query_format_of
from blue.stages import write_profiles
from blue.text import prompts, queries
from tests.helpers.recipes import python_blocks
from tests.helpers.small_stages import (
    end_stages,
    one_layer,  # noqa: F401
    one_step_config,
)

ROOT = Path(__file__).parents[1]
HISTORIES = [["orla lamp", "orla jug", "brum tent"], ["Amélie [2001]"], []]


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_layer):  # noqa: F811
    """A workdir of a reduced quickstart, with both exports."""
    workdir = tmp_path_factory.mktemp("run")
    end_stages(one_step_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def profiler(run):
    return blue.load_profiler(run / "export/profiler")


@pytest.fixture(scope="module")
def encoder(run):
    return blue.load_encoder(str(run / "export/encoder"))


# --- what is imported


@pytest.mark.parametrize(
    "script",
    [
        "import blue; dir(blue)",
        "from blue.main import main; assert main(['blue', '--help']) == 0",
        "from blue.workdir import settings; settings.load(['', '--config={config}', "
        "'--workdir=w'])",
    ],
)
def test_what_is_asked_first_brings_no_jax(script, tmp_path):
    script = script.replace("{config}", f"{ROOT}/configs/quickstart.py")
    script += "; import sys; assert 'jax' not in sys.modules"
    assert call(tmp_path, "-c", script, path=ROOT).returncode == 0


def test_four_names_and_no_others():
    assert {*blue.__all__} <= {*dir(blue)}
    assert all(callable(getattr(blue, name)) for name in blue.__all__)
    with pytest.raises(AttributeError, match="'load_everything'"):
        blue.load_everything  # noqa: B018


# --- the examples of the READMEs, word for word


def examples():
    """The blocks of Python in READMEs that import from blue, by their file."""
    for page in (ROOT / "README.md", *sorted(ROOT.glob("blue/**/README.md"))):
        for block in python_blocks(page.read_text()):
            if re.search(r"^from blue import ", block, re.M):
                yield pytest.param(block, id=str(page.relative_to(ROOT)))


def put_in_place(monkeypatch, run):
    """Lays the exports, and a small log, where an example's calls look for them."""

    def before(name, place):
        call = getattr(api, name)

        def placed(path, *arguments, **named):
            assert not Path(path).is_absolute()
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            place(Path(path), **named)
            return call(path, *arguments, **named)

        monkeypatch.setattr(api, name, placed)

    link = lambda role: lambda path: path.symlink_to(run / "export" / role)
    before("load_profiler", link("profiler"))
    before("load_encoder", link("encoder"))
    before("read_log", write_log)


def write_log(folder, *, events="events.csv", items="items.csv", **names):
    """A log of two users with the columns that `names` gives to read_log."""
    folder.mkdir(parents=True)
    title = names.pop("title_template", "{title}").strip("{}")
    of = lambda name: names.get(name, name.removeprefix("items_"))
    times = ("user_id", "item_id", "timestamp", "rating")
    rows = [
        ["anna", "1", "100", "4.5"],
        ["ben", "2", "200", ""],
        ["anna", "2", "300", "2"],
    ]
    with open(folder / events, "w", newline="") as file:
        csv.writer(file).writerows([[*map(of, times)], *rows])
    rows = [["1", "A  quiet\tlamp"], ["2", "A red tent"], ["3", "A hat"]]
    with open(folder / items, "w", newline="") as file:
        csv.writer(file).writerows([[of("items_item_id"), title], *rows])


@pytest.mark.parametrize("lines", [*examples()])
def test_an_example_runs_word_for_word(run, tmp_path, monkeypatch, lines):
    monkeypatch.chdir(tmp_path)
    put_in_place(monkeypatch, run)
    exec(compile(lines, "README.md", "exec"), {})


def test_the_first_page_has_an_example_of_few_lines():
    lines = next(examples()).values[0].splitlines()
    assert lines[0].startswith("from blue import load_profiler") and len(lines) <= 12


# --- the profiler


def test_profiles_are_those_of_the_generator(run, profiler):
    """Same parameters, prompts, stage, seed and keys: the same profiles."""
    config = one_step_config()
    config.profiler.checkpoint = str(run / "export/profiler")
    opened = open_run(config, str(run))
    mesh = opened.mesh
    model = load_profiler_base(opened, stage="evaluate")
    ratings = [[4.5, math.nan, 1.0], [3.0], []]
    of = prompt_format_of(config, model)
    ids = [
        prompts.fit_profile_prompt(
            of.templates, titles[-8:], given[-8:], of.tokenizer, max_tokens=96
        )[0]
        for titles, given in zip(HISTORIES, ratings, strict=True)
    ]
    assert profiler.prompts(HISTORIES, ratings) == ids
    config.seed = 5
    generate = make_generate_with(
        config, model, mesh, temperature=0.7, stage="write_profiles"
    )
    want = generate(model.params, ids, [0, 1, 2])
    got = profiler.write(HISTORIES, [[4.5, None, 1], [3], None], seed=5)
    assert got == want and len({p.text for p in got}) == 3
    assert profiler.write(HISTORIES, seed=6) != got
    assert profiler.write(HISTORIES[:1], seed=5) == got[:1]  # whoever else is written
    assert profiler.write([]) == []


@pytest.mark.slow
def test_profiles_of_a_log_are_those_of_its_stage(run, profiler, tmp_path):
    """With the run's user ids and seed: profiles.jsonl of stage write_profiles."""
    config = one_step_config()
    config.profiler.checkpoint = str(run / "export/profiler")
    log = load_log(config, str(run))
    users = log.user_ids[::40]
    config.write_profiles.users = str(tmp_path / "users.txt")
    Path(config.write_profiles.users).write_text("\n".join(users))
    write_profiles.run(config, str(tmp_path))
    lines = map(json.loads, (tmp_path / "profiles.jsonl").read_text().splitlines())
    want = [(line["profile"], line["num_tokens"], line["finished"]) for line in lines]
    titles, ratings = zip(*map(log.history, users), strict=True)
    got = profiler.write(titles, ratings, user_ids=users, seed=config.seed)
    assert got == want and len({*want}) > 1


def test_titles_are_made_safe_as_in_training(profiler):
    read = lambda titles: profiler.prompts([titles])[0]
    assert read(["a  [b]\n\u200bc | d"]) == read(["a (b) c / d"])
    longer = profiler.recipe._replace(max_prompt_tokens=400)
    roomy = dataclasses.replace(profiler, recipe=longer)
    assert roomy.prompts([["x" * 400]]) == roomy.prompts([["x" * 300]])
    assert read(["<end_of_turn>"]).count(profiler.model.tokenizer.end_ids[-1]) == 1
    many = [f"lamp {n}" for n in range(50)]
    assert read(many) == read(many[-8:])  # prompts.history_items of :tiny


def test_ratings_are_shown_where_the_wording_shows_them(run):
    full = blue.load_profiler(
        run / "export/profiler", prompt_style="full", max_prompt_tokens=900
    )
    decode = full.model.tokenizer.decode
    shown = [decode(ids) for ids in full.prompts([["a lamp", "b"]], [[4.5, None]])]
    assert "[a lamp | 4.5], [b]" in shown[0]


def test_a_recipe_comes_from_the_export_and_the_caller(run, profiler):
    assert profiler.recipe._asdict() == {
        "prompt_style": "short",
        "history_items": 8,
        "max_prompt_tokens": 96,
        "prompt_buckets": (96,),
        "max_completion_tokens": 12,
        "sampling_temperature": 0.7,
        "params_dtype": "float32",
        "compute_dtype": "float32",
        "batch_size": 8,
    }
    greedy = blue.load_profiler(run / "export/profiler", sampling_temperature=0)
    assert greedy.write([["lamp"]], seed=1) == greedy.write([["lamp"]], seed=2)


def test_a_plain_directory_needs_no_training_config(run, profiler, tmp_path):
    """As other tools write it: config.json, weights, tokenizer."""
    for role in ("profiler", "encoder"):
        shutil.copytree(run / "export" / role, tmp_path / role)
        (tmp_path / role / "training_config.json").unlink()
    (tmp_path / "encoder" / sentence_layout.PROMPTS).unlink()
    plain = blue.load_profiler(tmp_path / "profiler")
    assert plain.recipe == ProfilerRecipe()
    shown = plain.model.tokenizer.decode(plain.prompts([["orla lamp"]])[0])
    assert "History: [orla lamp]" in shown
    told = profiler.recipe._asdict()
    same = blue.load_profiler(tmp_path / "profiler", **told)
    assert same.write(HISTORIES, seed=3) == profiler.write(HISTORIES, seed=3)
    encoder = blue.load_encoder(tmp_path / "encoder")
    assert encoder.query_prompt == "" and encoder.recipe.max_tokens == 64
    assert encoder.recipe == EncoderRecipe(max_tokens=64, row_lengths=(32, 64))
    asked = blue.load_encoder(tmp_path / "encoder", query_prompt="Q: ", batch_size=16)
    assert asked.query_prompt == "Q: " and asked.recipe.batch_size == 16


def test_a_hub_id_is_enough(run, profiler, monkeypatch):
    """Of the hub nothing but the files of an export that was put there."""
    asked = []

    def download(repository, **wanted):
        asked.append((repository, wanted["revision"]))
        return str(run / "export" / repository.partition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source._download.cache_clear()
    fetched = blue.load_profiler("someone/profiler@v1")
    assert fetched.recipe == profiler.recipe
    assert fetched.model.source.checkpoint == "someone/profiler@v1"
    assert blue.load_encoder("someone/encoder").recipe.prompt_style == "short"
    assert asked == [("someone/profiler", "v1"), ("someone/encoder", None)]
    source._download.cache_clear()


# --- the encoder


def test_vectors_are_those_of_the_runs_encoder(run, encoder):
    config = one_step_config()
    config.encoder.checkpoint = str(run / "export/encoder")
    opened = open_run(config, str(run))
    log = opened.log
    own = own_encoder(config, load_encoder(opened), opened.mesh)
    texts = [*log.texts[:5], "", "lamp " * 100]
    np.testing.assert_allclose(
        encoder.embed(texts, "item"), own.embed(texts), atol=1e-5
    )
    f = query_format_of(config, own)
    profile = Profile("likes [quiet] lamps", 5, True)
    histories = [[f"lamp no. {n}" for n in range(9)], []]
    want = [queries.history_profile_query(f, h, profile.text) for h in histories]
    assert encoder.user_texts([profile] * 2, histories) == want
    alone = queries.profile_query(f, profile.text)
    assert encoder.user_texts([profile.text]) == [alone]
    got = encoder.embed([profile, *want])
    assert got.dtype == np.float32 and got.shape == (3, encoder.width)
    np.testing.assert_allclose(got, own.embed([alone, *want]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert encoder.embed([]).shape == (0, encoder.width)


def test_the_query_prompt_stands_before_queries_alone(run, encoder):
    asked = blue.load_encoder(run / "export/encoder", query_prompt="Q: ")
    plain = encoder.embed(["Q: lamp", "lamp"], kind="item")
    got = np.stack([asked.embed(["lamp"])[0], asked.embed(["lamp"], kind="item")[0]])
    np.testing.assert_allclose(got, plain, atol=1e-5)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    assert asked.user_texts(["lamp"]) == ["lamp"]  # it comes with embed


def test_rank_worked_by_hand(encoder):
    unit = np.zeros((5, encoder.width), np.float32)
    unit[[0, 1, 2, 3, 4], [0, 1, 0, 2, 0]] = 1
    unit[4, :2] = 0.6, 0.8
    best, scores = blue.rank(encoder, unit[:2], unit, k=3)
    assert best.tolist() == [[0, 2, 4], [1, 4, 0]]  # of equal ones the earlier first
    np.testing.assert_allclose(scores, [[1, 1, 0.6], [1, 0.8, 0]], atol=1e-6)
    items = ["orla lamp", "brum tent", "orla jug"]
    texts = blue.rank(encoder, ["brum tent"], items, k=1)
    vectors = encoder.embed(["brum tent"]), encoder.embed(items, kind="item")
    np.testing.assert_array_equal(texts[0], blue.rank(encoder, *vectors, k=1)[0])
    assert texts[0].tolist() == [[1]] and texts[1][0, 0] == pytest.approx(1, abs=1e-5)
    assert blue.rank(encoder, [], items, k=2)[0].shape == (0, 2)


# --- logs


def test_a_log_is_read_with_guessed_and_with_given_columns(tmp_path):
    names = {"user_id": "shopper", "items_item_id": "sku", "rating": "stars"}
    write_log(tmp_path / "a", title_template="{name}", events="c.csv", **names)
    log = blue.read_log(tmp_path / "a", events="c.csv", user_id="shopper")
    assert log.titles == ["A quiet lamp", "A red tent", "A hat"]
    assert log.history("anna") == (["A quiet lamp", "A red tent"], [4.5, 2.0])
    titles, ratings = log.history("ben")
    assert titles == ["A red tent"] and math.isnan(ratings[0])
    with pytest.raises(UserError, match="no user 'zoe'"):
        log.history("zoe")
    without = blue.read_log(
        tmp_path / "a", events="c.csv", user_id="shopper", rating=""
    )
    assert np.isnan(without.rating).all()


def test_public_formats_are_read_by_name(tmp_path):
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,Ran (1985),Drama\n")
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,1,4.0,9\n"
    )
    log = blue.read_log(tmp_path, "movielens", title_template="{title} ({year})")
    assert log.history("7") == (["Ran (1985)"], [4.0])


# --- mistakes


def mistake(call, *arguments, **named):
    """The one line that the call ends with, for callers without a checker of types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UserError) as caught:
            call(*arguments, **named)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    told = str(caught.value)
    assert "\n" not in told and "--config" not in told
    return told


def test_mistakes_in_what_is_written(profiler):
    write = profiler.write
    assert "one user is [[title, title]]" in mistake(write, ["a", "b"])
    assert "ratings[0] has 2 ratings" in mistake(write, [["a"]], [[1, 2]])
    assert "user_ids is of 2 users" in mistake(write, [["a"]], user_ids=["x", "y"])
    assert "seed is -1, must be" in mistake(write, [["a"]], seed=-1)
    assert "max_prompt_tokens=96 is too small" in mistake(write, [["x y " * 90]])


def test_mistakes_in_what_is_embedded_and_ranked(encoder):
    assert "kind is 'user'" in mistake(encoder.embed, ["a"], kind="user")
    assert "texts is one text" in mistake(encoder.embed, "a")
    assert "texts[1] is float" in mistake(encoder.embed, ["a", math.nan])
    assert "histories is of 1 users" in mistake(encoder.user_texts, ["a", "b"], [["c"]])
    assert "k is 3, must be 1 to 2" in mistake(blue.rank, encoder, ["a"], ["b", "c"], 3)
    wide = np.zeros((2, encoder.width + 1))
    assert "query vectors have shape" in mistake(blue.rank, encoder, wide, ["b"], 1)


def test_mistakes_in_what_is_loaded(run, tmp_path):
    load, export = blue.load_profiler, run / "export/profiler"
    assert "checkpoint=nowhere is no directory" in mistake(load, "nowhere")
    assert "'encoder'; a profiler is" in mistake(load, run / "export/encoder")
    assert "known are prompt_style" in mistake(load, export, temperature=1)
    assert "known are prompt_style" in mistake(blue.load_encoder, export, buckets=(1,))


def test_mistakes_in_what_is_read(tmp_path):
    write_log(tmp_path / "a", user_id="who")
    told = mistake(blue.read_log, tmp_path / "a")
    assert "no column 'user_id'" in told and "set user_id=NAME" in told
    told = mistake(blue.read_log, tmp_path / "a", user_id="who", events="x.csv")
    assert "set events=NAME or path=DIR" in told
    told = mistake(blue.read_log, tmp_path / "a", user_id="who", title_template="{t}")
    assert "set title_template='{NAME}'" in told
    assert "name is 'imdb'; known are table" in mistake(blue.read_log, ".", name="imdb")
    assert "does not know title for name='table'" in mistake(
        blue.read_log, ".", title="name"
    )
    told = mistake(blue.read_log, ".", "movielens", events="ratings.csv")
    assert told == "read_log does not know events for name='movielens'"


# --- configs from other folders, and the package as pip installs it


def call(folder, *arguments, python=sys.executable, path=None):
    """A python process in `folder`; with `path`, blue is found there."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_config_of_the_clone_is_read_from_another_folder(tmp_path):
    """And one elsewhere that starts from the clone's base.

    The field that does not exist is found after the config was read.
    """
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import base\n\n\ndef get_config(arg=None):\n"
        "    return base.get_config(arg)\n"
    )
    for config in (ROOT / "configs/quickstart.py", mine):
        ended = call(
            tmp_path, "-m", "blue.main", f"--config={config}:tiny", "--workdir=w",
            "--config.nothing=1", path=installed(tmp_path / "lib", "blue", "configs"),
        )  # fmt: skip
        assert ended.returncode == 2 and "no such field" in ended.stderr, ended.stderr


def test_a_config_without_its_base_is_one_line(tmp_path):
    """As after `pip install .`: the package without configs."""
    (tmp_path / "mine.py").write_text("from configs import base\n")
    path = installed(tmp_path / "lib", "blue")
    ended = call(
        tmp_path, "-m", "blue.main", "--config=mine.py", "--workdir=w", path=path
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "put mine.py into the folder configs/ of a clone" in ended.stderr
    ended = call(tmp_path, "-m", "blue.main", "--help", path=path)
    assert ended.returncode == 0 and "not installed by pip" in ended.stdout
    # the folder `configs` that a config lies in is its own, wherever it is
    shutil.copytree(ROOT / "configs", tmp_path / "copy/configs")
    ended = call(
        tmp_path, "-m", "blue.main", "--config=copy/configs/quickstart.py",
        "--workdir=w", "--config.nothing=1", path=path,
    )  # fmt: skip
    assert ended.returncode == 2 and "no such field" in ended.stderr


def installed(folder, *names):
    """A folder with a copy of the package, as `site-packages` would have it."""
    if not folder.exists():
        folder.mkdir()
        for name in names:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder
