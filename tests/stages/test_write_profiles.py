"""Profiles of all users: the right ones, in order, none lost or doubled by a kill."""

import json
import logging
import os
import stat

import numpy as np
import pytest

from blue.errors import UserError
from blue.runtime.sharding import make_mesh
from blue.sources.data import load_log
from blue.sources.open_run import Run
from blue.sources.profiler import load_profiler, make_generate_with
from blue.sources.role import stage_checkpoints
from blue.stages import write_profiles
from blue.text import prompts
from blue.text.templates import TEMPLATES
from configs import quickstart
from tests.helpers.small_stages import one_layer  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_layer")
KEYS = ["user_id", "profile", "num_tokens", "finished", "step", "model"]


def make_config(**changes):
    c = quickstart.get_config("tiny")
    c.data.synthetic.users = 70
    c.data.synthetic.min_history = 1  # far below data.min_interactions
    c.max_prompt_tokens = 40  # the longest histories do not fit
    c.prompts.history_items = 1000
    c.update(changes)
    return c


def read(workdir):
    return [json.loads(line) for line in (workdir / "profiles.jsonl").open()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_layer):  # noqa: F811
    """A workdir in which the stage ran without a break."""
    workdir = tmp_path_factory.mktemp("whole")
    write_profiles.run(make_config(), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def log(whole):
    return load_log(make_config(), str(whole))


def test_every_user_has_the_profile_of_the_plain_sampler(whole, log):
    config, mesh = make_config(), make_mesh(1, -1, 1)
    profiler = load_profiler(Run(config, str(whole), mesh, log), "base")
    assert profiler is not None
    rows, ids, dropped = [], [], 0
    for user, user_id in enumerate(log.user_ids):
        events = np.flatnonzero(log.user == user)
        prompt, cut = prompts.fit_profile_prompt(
            TEMPLATES["short"],
            [log.titles[i] for i in log.item[events]],
            log.rating[events],
            profiler.tokenizer,
            max_tokens=40,
        )
        rows.append(prompt)
        ids.append(write_profiles.sampling_id(user_id))
        dropped += cut > 0
    assert 0 < dropped < 70 and min(np.bincount(log.user)) < config.data.min_history + 5
    generate = make_generate_with(
        config, profiler, mesh, temperature=0.7, stage="write_profiles"
    )
    want = generate(profiler.params, rows, ids)

    found = read(whole)
    assert [row["user_id"] for row in found] == log.user_ids
    for row, profile in zip(found, want, strict=True):
        assert list(row) == KEYS
        assert (row["profile"], row["num_tokens"], row["finished"]) == profile
        assert row["step"] == 0 and row["model"] == "tiny_gemma3, random weights"
    assert len({row["profile"] for row in found}) > 60
    assert stat.S_IMODE((whole / "profiles.jsonl").stat().st_mode) == 0o600
    left = {path.name for path in whole.iterdir()}
    assert left == {"profiles.jsonl", "profiles.json", "tokenizer"}


def test_a_list_of_users_gets_the_same_profiles(whole, log, tmp_path, caplog):
    chosen = [log.user_ids[i] for i in (50, 3, 17)]
    listed = [chosen[0], "nobody", *chosen[1:], "", chosen[0], "no one else"]
    (tmp_path / "users.txt").write_text("\n".join(listed) + "\n")
    config = make_config()
    config.write_profiles.users = str(tmp_path / "users.txt")
    write_profiles.run(config, str(tmp_path))
    found, by_user = read(tmp_path), {row["user_id"]: row for row in read(whole)}
    assert found[:3] == [by_user[log.user_ids[i]] for i in (3, 17, 50)]
    assert [row["user_id"] for row in found[3:]] == ["nobody", "no one else"]
    for row in found[3:]:
        assert list(row) == KEYS
        assert (row["profile"], row["num_tokens"], row["finished"]) == ("", 0, True)
    assert "2 users of" in caplog.text and "not in the log" in caplog.text


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_it_goes_on_without_losing_or_doubling(
    whole, tmp_path, monkeypatch, seed
):
    """Each attempt dies after some bytes, in the part file or while finishing."""
    rng = np.random.default_rng(seed)
    append = write_profiles.append
    survived: set[str] = set()
    part = tmp_path / "profiles.jsonl.part"

    kills = 0
    while True:
        room = int(10 ** rng.uniform(1, 4.6))  # bytes that still reach the disk

        def dies(path, lines):
            nonlocal room  # noqa: B023
            content = b"".join(lines)
            append(path, [content[:room]])  # noqa: B023
            room -= len(content)  # noqa: B023
            if room <= 0:  # noqa: B023
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(write_profiles, "append", dies)
            try:
                write_profiles.run(make_config(), str(tmp_path))
                break
            except Killed:
                kills += 1
        if part.exists():
            done = {
                json.loads(line)["user_id"]
                for line in part.read_bytes().splitlines(keepends=True)[1:]
                if line.endswith(b"\n")
            }
            assert survived <= done
            survived = done
    assert kills > 2 and len(survived) > 20
    for name in ("profiles.jsonl", "profiles.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not part.exists()


@pytest.mark.parametrize("last", ["profiles.json", "profiles.jsonl"])
def test_killed_while_finishing_nothing_is_written_again(
    whole, tmp_path, monkeypatch, last
):
    replace = write_profiles.replace

    def dies(path, lines):
        replace(path, lines)
        if path.name == last:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write_profiles, "replace", dies)
        with pytest.raises(Killed):
            write_profiles.run(make_config(), str(tmp_path))
    monkeypatch.delattr(write_profiles, "write_missing")
    write_profiles.run(make_config(), str(tmp_path))
    want = (whole / "profiles.jsonl").read_bytes()
    assert (tmp_path / "profiles.jsonl").read_bytes() == want
    assert not (tmp_path / "profiles.jsonl.part").exists()


def test_finished_profiles_stay_until_something_differs(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="blue")
    config = make_config()
    write_profiles.run(config, str(tmp_path))
    assert "padding waste" in caplog.text and "written anew" not in caplog.text
    first = read(tmp_path)
    config.write_profiles.batch_size = 32  # changes no profile
    with monkeypatch.context() as patch:
        patch.delattr(write_profiles, "write_missing")
        write_profiles.run(config, str(tmp_path))
    assert "has all 70 profiles already" in caplog.text
    assert "written anew" not in caplog.text

    # a finished profiler stage: other weights
    config = make_config()
    mesh, log = make_mesh(1, -1, 1), load_log(config, str(tmp_path))
    base = load_profiler(Run(config, str(tmp_path), mesh, log), "base")
    assert base is not None
    checkpoints = stage_checkpoints(config, str(tmp_path), "profiler")
    trained = dict(base.params, embed=base.params["embed"] * 1.1)
    checkpoints.save_best(7, trained, {}, 0.5)
    checkpoints.finish({"steps": 7})
    write_profiles.run(config, str(tmp_path))
    second = read(tmp_path)
    assert "written anew" in caplog.text
    assert {row["step"] for row in second} == {7}
    assert "GRPO step 7" in second[0]["model"]
    texts = lambda rows: [row["profile"] for row in rows]
    assert texts(second) != texts(first)

    # another temperature, with an unfinished part of other profiles lying about
    (tmp_path / "profiles.jsonl.part").write_text('{"fingerprint": "another"}\n')
    config.evaluate.sampling_temperature = 0.5
    write_profiles.run(config, str(tmp_path))
    assert texts(read(tmp_path)) != texts(second)
    assert len(read(tmp_path)) == 70


def test_mistakes_are_one_line(tmp_path):
    def message(content=None, **fields):
        config = make_config()
        path = tmp_path / "users.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        config.write_profiles.update({"users": str(path), **fields})
        with pytest.raises(UserError) as error:
            write_profiles.run(config, str(tmp_path))
        text = str(error.value)
        assert "\n" not in text and "write_profiles." in text
        return text

    assert "No such file" in message()
    assert "no user id in it" in message(b"\n  \n")
    assert "not UTF-8" in message(b"\xff\xfe1\n")
    assert "batch_size = 12 must be" in message(b"1\n", batch_size=12)
    assert not os.path.exists(tmp_path / "profiles.jsonl.part")
