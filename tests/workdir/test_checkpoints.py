import json
import logging
import shutil
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from blue.errors import UserError
from blue.workdir.checkpoints import COMMIT_FILE, Checkpoints, fingerprint

# Orbax leaves the readers of a broken file unawaited.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: tuple


def mesh(devices=8, axis_type=AxisType.Auto):
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh(
        (1, devices, 1), axes, (axis_type,) * 3, devices=jax.devices()[:devices]
    )


def make_state(step=0, devices=8):
    rows = NamedSharding(mesh(devices), P("fsdp"))
    rest = NamedSharding(mesh(devices), P())
    w = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    params = {
        "w": jax.device_put(w, rows),
        "b": jax.device_put(jnp.linspace(0, 1, 3, dtype=jnp.bfloat16), rest),
    }
    moments = jax.tree.map(lambda x: 2 * x, params)
    opt_state = ((), jax.device_put(jnp.int32(step), rest), moments, None)
    return State(jax.device_put(jnp.int32(step), rest), params, opt_state)


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path):
    """Steps 10 and 20 of a stage, and the directory they are in."""
    checkpoints = Checkpoints(tmp_path / "profiler", keep=3, milestone_every=0)
    for step in (10, 20):
        checkpoints.save(step, make_state(step), {"seed": 7, "buckets": (64, 128)})
    return checkpoints, tmp_path / "profiler"


def data_file(directory):
    """The file under `directory` with most of the arrays' bytes."""
    return max(directory.rglob("d/*"), key=lambda path: path.stat().st_size)


# --- fingerprint


def test_fingerprint_does_not_depend_on_sharding():
    w = np.arange(256, dtype=np.float32).reshape(16, 16) + 0.1
    expected = fingerprint({"w": w})
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        for spec in (P(), P("fsdp"), P(None, "fsdp")):
            sharding = NamedSharding(mesh(axis_type=axis_type), spec)
            assert fingerprint({"w": jax.device_put(w, sharding)}) == expected


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "bfloat16", "float16", "float32", "int32", "int64"]
)
def test_fingerprint_sees_every_flipped_bit(dtype):
    dtype = jnp.dtype(dtype)
    host = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    bits = 1 if dtype.kind == "b" else 8 * dtype.itemsize
    view = host.view(np.dtype(f"uint{8 * dtype.itemsize}"))
    clean = fingerprint([host])
    for i in range(host.size):
        for bit in range(bits):
            view.flat[i] ^= view.dtype.type(1 << bit)
            assert fingerprint([host]) != clean
            view.flat[i] ^= view.dtype.type(1 << bit)


def test_fingerprint_sees_swaps_and_signs():
    a, b = jnp.arange(4.0), jnp.arange(4.0) + 1
    numbers = {
        fingerprint({"a": a, "b": b}),
        fingerprint({"a": b, "b": a}),
        fingerprint({"a": a[::-1], "b": b}),
        fingerprint({"a": a.reshape(2, 2).T.ravel(), "b": b}),
        fingerprint({"a": -a, "b": b}),
        fingerprint({"a": a, "b": -b}),
    }
    assert len(numbers) == 6


# --- save and restore


@pytest.mark.parametrize("devices", [8, 2])
def test_restore_gives_the_same_bits_on_any_mesh(saved, devices):
    checkpoints, _ = saved
    assert checkpoints.latest_step() == 20
    target = abstract(make_state(devices=devices))
    state, meta = checkpoints.restore(target)
    assert_same(state, make_state(20))
    assert state.params["w"].sharding == target.params["w"].sharding
    assert meta == {"seed": 7, "buckets": [64, 128], "step": 20}
    state, meta = checkpoints.restore(target, step=10)
    assert meta["step"] == 10 and int(state.step) == 10


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, milestone_every=0)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    state = make_state(5)
    target = abstract(state)
    checkpoints.save(5, state, {})
    overwrite(state)
    assert_same(checkpoints.restore(target)[0], make_state(5))


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, milestone_every=4)
    for step in range(1, 10):
        checkpoints.save(step, {"x": jnp.int32(step)}, {})
    kept = sorted(int(p.name) for p in tmp_path.iterdir())
    assert kept == [4, 8, 9]


def test_saving_a_step_again_drops_the_abandoned_future(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, milestone_every=0)
    for step in (10, 20, 30, 20):
        checkpoints.save(step, {"x": jnp.int32(step)}, {"try": step})
    assert checkpoints.latest_step() == 20
    checkpoints.save(20, {"x": jnp.int32(21)}, {})
    target = abstract({"x": jnp.int32(0)})
    assert int(checkpoints.restore(target)[0]["x"]) == 21


def test_best_is_replaced_when_told_and_survives_a_torn_successor(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, milestone_every=0)
    assert checkpoints.best() is None
    params = make_state(1).params
    checkpoints.save_best(30, params, {"metric": "ndcg"}, 0.5)
    checkpoints.save_best(20, make_state(2).params, {"metric": "ndcg"}, 0.4)
    assert checkpoints.best() == {"metric": "ndcg", "step": 20, "value": 0.4}
    (tmp_path / "best" / "9").mkdir()  # killed before the commit
    checkpoints.save(40, make_state(4), {})  # steps and best do not disturb each other
    found, meta = checkpoints.restore_best(abstract(params))
    assert_same(found, make_state(2).params)
    assert meta["step"] == 20
    checkpoints.save_best(50, params, {}, 0.6)
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["2"]


def test_a_stage_is_finished_when_marked(tmp_path):
    directory = tmp_path / "encoder"
    checkpoints = Checkpoints(directory, keep=1, milestone_every=0)
    assert checkpoints.finished() is None and checkpoints.latest_step() is None
    for meta in ({}, {"step": 3, "export": "export/encoder"}):
        checkpoints.finish(meta)
        again = Checkpoints(directory, keep=1, milestone_every=0)
        assert again.finished() == {**meta, "finished": True}
    (directory / "finished.json").write_text('{"step": 3')
    assert again.finished() is None
    assert [p.name for p in directory.iterdir()] == ["finished.json"]


# --- faults


def flip_stored_bits(directory):
    """Other array data under the old fingerprint: bits that changed on the disk."""
    other = directory.parent.parent / "other"
    state = make_state(21) if directory.name == "20" else make_state(21).params
    Checkpoints(other, keep=1, milestone_every=0).save(20, state, {})
    shutil.rmtree(directory / "state")
    shutil.copytree(other / "20" / "state", directory / "state")


def flip_a_bit_of_meta(directory):
    path = directory / "meta" / "data.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 6'))


def flip_a_bit_of_the_file(directory):
    path = data_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(directory):
    path = data_file(directory)
    path.write_bytes(path.read_bytes()[:100])


FAULTS = {
    "bits": flip_stored_bits,
    "one bit": flip_a_bit_of_the_file,
    "bit of meta": flip_a_bit_of_meta,
    "truncated": truncate,
    "data deleted": lambda d: data_file(d).unlink(),
    "meta empty": lambda d: (d / "meta" / "data.json").write_text(""),
    "meta deleted": lambda d: shutil.rmtree(d / "meta"),
    "state deleted": lambda d: shutil.rmtree(d / "state"),
    "metadata broken": lambda d: (d / "state" / "_METADATA").write_text("{"),
    "manifest empty": lambda d: (d / "state" / "manifest.ocdbt").write_bytes(b""),
    "root metadata empty": lambda d: (d / "_CHECKPOINT_METADATA").write_text(""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_step_is_passed_over_loudly(saved, fault, caplog):
    checkpoints, directory = saved
    FAULTS[fault](directory / "20")
    state, meta = checkpoints.restore(abstract(make_state()))
    if fault == "root metadata empty" and meta["step"] == 20:
        assert_same(state, make_state(20))  # nothing in it that is needed
        return
    assert meta["step"] == 10
    assert_same(state, make_state(10))
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "blue"]
    assert "BAD CHECKPOINT" in warning and str(directory / "20") in warning
    assert "\n" not in warning


def test_all_steps_broken_is_one_line_and_no_fresh_start(saved):
    checkpoints, directory = saved
    for step in ("10", "20"):
        truncate(directory / step)
    with pytest.raises(UserError) as error:
        checkpoints.restore(abstract(make_state()))
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def test_what_was_not_committed_does_not_count(saved, caplog):
    checkpoints, directory = saved
    (directory / "20" / COMMIT_FILE).unlink()
    (directory / "30").mkdir()
    (directory / "40").write_text("a file")
    assert checkpoints.latest_step() == 10
    warned = " ".join(r.getMessage() for r in caplog.records)
    assert str(directory / "20") in warned and str(directory / "30") in warned
    assert checkpoints.restore(abstract(make_state()))[1]["step"] == 10
    again = Checkpoints(directory, keep=3, milestone_every=0)
    again.save(20, make_state(20), {})
    assert again.latest_step() == 20 and not (directory / "30").exists()


def test_only_the_first_save_may_be_broken_off(saved, tmp_path):
    """Where more was saved and nothing is complete, nothing starts afresh."""
    new = Checkpoints(tmp_path / "new", keep=1, milestone_every=0)
    (tmp_path / "new" / "0").mkdir(parents=True)
    assert new.latest_step() is None
    new.save(0, make_state(0), {})
    assert new.latest_step() == 0

    checkpoints, directory = saved
    for step in ("10", "20"):
        (directory / step / COMMIT_FILE).unlink()
    with pytest.raises(UserError, match=r"no checkpoint is complete.*10, 20 without"):
        checkpoints.latest_step()
    for step in ("10", "20"):  # a copy that lost its content
        shutil.rmtree(directory / step)
        (directory / step).write_text("")
    with pytest.raises(UserError, match="no checkpoint is complete"):
        checkpoints.latest_step()


def test_traces_of_training_forbid_a_fresh_start(tmp_path):
    """Best parameters and finished.json come after the first save, and so do lines."""
    directory = tmp_path / "profiler"
    checkpoints = Checkpoints(directory, keep=1, milestone_every=0)
    assert checkpoints.latest_step(traces=["lines"]) is None  # moved away
    (directory / "0").mkdir(parents=True)  # broken off in the first save
    assert checkpoints.latest_step() is None
    with pytest.raises(UserError, match=r"begun \(found lines\)"):
        checkpoints.latest_step(traces=["lines"])
    (directory / "best" / "0").mkdir(parents=True)  # torn, but it was begun
    with pytest.raises(UserError, match=r"begun \(found best\)"):
        checkpoints.latest_step()
    (directory / "finished.json").write_text("{")
    assert checkpoints.finished() is None
    with pytest.raises(UserError, match=r"begun \(found best, finished.json\)"):
        checkpoints.latest_step()


@pytest.mark.parametrize("name", ["007", "٣", "7.old", "-7", "tmp"])
def test_a_stray_directory_is_no_step(name, saved):
    checkpoints, directory = saved
    shutil.copytree(directory / "10", directory / name)
    assert checkpoints.latest_step() == 20
    checkpoints.save(30, {"x": jnp.int32(1)}, {})
    assert checkpoints.latest_step() == 30 and (directory / name).is_dir()


@pytest.mark.parametrize("fault", ["bits", "truncated", "meta empty"])
def test_broken_best_parameters_are_never_taken(fault, tmp_path):
    checkpoints = Checkpoints(tmp_path / "stage", keep=1, milestone_every=0)
    params = make_state(20).params
    checkpoints.save_best(20, params, {}, 0.5)
    FAULTS[fault](tmp_path / "stage" / "best" / "0")
    assert (checkpoints.best() is None) == (fault == "meta empty")
    with pytest.raises(UserError, match="no checkpoint of .*best can be read"):
        checkpoints.restore_best(abstract(params))


def test_a_finished_stage_is_opened_only_for_a_step_it_has(saved):
    checkpoints, _ = saved
    checkpoints.finish({})
    with pytest.raises(UserError, match=r"no checkpoint 15, it has \[10, 20\]"):
        checkpoints.reopen(15)
    assert checkpoints.finished()
    checkpoints.reopen(10)
    assert not checkpoints.finished()


def test_going_back_removes_what_came_after(saved):
    checkpoints, directory = saved
    checkpoints.go_back(15)  # no such step: nothing happens
    assert checkpoints.latest_step() == 20
    checkpoints.go_back(10)
    assert checkpoints.latest_step() == 10 and not (directory / "20").exists()


def test_a_disk_that_is_full_leaves_the_last_good_step(saved, monkeypatch, caplog):
    checkpoints, directory = saved

    def full(path, *arguments, **options):
        path.mkdir()
        raise ValueError("in a worker") from OSError(28, "No space left on device")

    usage = lambda folder: SimpleNamespace(free=10)
    monkeypatch.setattr("blue.workdir.checkpoints.shutil.disk_usage", usage)
    monkeypatch.setattr("blue.workdir.checkpoints.ocp.save_checkpointables", full)
    with pytest.raises(UserError) as caught:
        checkpoints.save(30, make_state(30), {})
    said = str(caught.value)
    assert str(directory / "30") in said and "No space left" in said
    assert "\n" not in said and "0.0 GB free" in caplog.text
    monkeypatch.undo()
    again = Checkpoints(directory, keep=3, milestone_every=0)
    assert again.latest_step() == 20
    assert_same(again.restore(abstract(make_state()))[0], make_state(20))
    again.save(30, make_state(30), {})
    assert again.latest_step() == 30


def test_a_directory_that_vanishes_is_told_not_made_again(saved):
    checkpoints, directory = saved
    shutil.rmtree(directory)
    with pytest.raises(UserError, match="profiler has vanished"):
        checkpoints.save(30, make_state(30), {})
    assert not directory.exists()


def test_no_flipped_bit_goes_unseen(saved, caplog):
    """Any bit of any file of the newest step: it is passed over, or none the worse."""
    checkpoints, directory = saved
    rng = np.random.default_rng(0)
    files = sorted(p for p in (directory / "20").rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in files])
    files, seen = [p for p, n in zip(files, sizes, strict=True) if n], 0
    for number in range(24):
        path = files[number % len(files)]
        good = path.read_bytes()
        bad, bit = bytearray(good), int(rng.integers(8 * len(good)))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        state, meta = checkpoints.restore(abstract(make_state()))
        assert_same(state, make_state(meta["step"]))
        seen += meta["step"] == 10
        path.write_bytes(good)
    assert seen >= 6 and checkpoints.restore(abstract(make_state()))[1]["step"] == 20


def test_a_missing_step_is_named(saved):
    with pytest.raises(UserError, match=r"no checkpoint 15, it has \[10, 20\]"):
        saved[0].restore(abstract(make_state()), step=15)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda p: p | {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32)},
            r"leaf params/w: expected float32\[64, 32\], found float32\[64, 64\]",
        ),
        (
            lambda p: p | {"b": jax.ShapeDtypeStruct((3,), jnp.float32)},
            r"leaf params/b: expected float32\[3\], found bfloat16\[3\]",
        ),
        (
            lambda p: p | {"c": jax.ShapeDtypeStruct((), jnp.int32)},
            r"leaf params/c: expected int32\[\], found nothing",
        ),
        (
            lambda p: {"w": p["w"]},
            r"leaf params/b: expected nothing, found bfloat16\[3\]",
        ),
    ],
)
def test_another_model_is_refused_with_the_leaf(saved, change, message, caplog):
    checkpoints, _ = saved
    target = abstract(make_state())
    with pytest.raises(UserError, match=message), caplog.at_level(logging.WARNING):
        checkpoints.restore(target._replace(params=change(target.params)))
    assert not [r for r in caplog.records if "BAD CHECKPOINT" in r.getMessage()]


def test_meta_is_plain_json_on_disk(saved):
    _, directory = saved
    record = json.loads((directory / "20" / "meta" / "data.json").read_text())
    assert record["meta"]["seed"] == 7
    assert record["fingerprint"] == fingerprint(make_state(20))


def test_a_relative_directory_is_as_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("runs/a", keep=1, milestone_every=0)
    checkpoints.save(3, make_state(3), {})
    monkeypatch.chdir("/")
    assert checkpoints.latest_step() == 3
    assert (tmp_path / "runs/a/3").is_dir()
