"""What TensorBoard shows of a stage."""

import stat

import jax.numpy as jnp
import numpy as np
from google.protobuf import text_format
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins import projector
from tensorboard.util import tensor_util

from blue.workdir.writer import write_curves
from tests.helpers.writers import open_writer


def events(directory):
    """What TensorBoard's server reads there: all is a tensor to it, by tag."""
    accumulator = plugin_event_accumulator.EventAccumulator(
        str(directory), size_guidance={"tensors": 0}
    )
    accumulator.Reload()
    return accumulator


def points(found, tag):
    return [
        (event.step, tensor_util.make_ndarray(event.tensor_proto))
        for event in found.Tensors(tag)
    ]


def test_tensorboard_reads_everything_and_shows_replayed_steps_once(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    for step in range(4):
        values = {"policy/kl": step, "policy/nan": np.nan, "eval/ndcg@10": 0.5}
        writer.scalars(step, values)
        writer.histogram(step, "reward/total", jnp.array([[0.0, jnp.nan], [1.0, 2.0]]))
        writer.text(step, "profiles", "**a** <b>")
    writer.close()
    writer = open_writer(tmp_path, tensorboard=True, first_step=2)
    writer.scalars(2, {"policy/kl": 20})
    writer.close()
    for file in (tmp_path / "tensorboard" / "profiler").glob("events*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600  # it has sample profiles
    found = events(tmp_path / "tensorboard" / "profiler")
    assert points(found, "policy/kl") == [(0, 0), (1, 1), (2, 20)]
    assert {"policy/nan", "policy_nan"}.isdisjoint(found.Tags()["tensors"])
    assert points(found, "eval/ndcg_10") == [(0, 0.5), (1, 0.5)]
    (step, bins), (later, _) = points(found, "reward/total")
    assert (step, later) == (0, 1)
    assert bins[0, 0] == 0 and bins[-1, 1] == 2 and bins[:, 2].sum() == 3
    assert points(found, "profiles/text_summary") == [
        (0, b"**a** <b>"),
        (1, b"**a** <b>"),
    ]
    plugin = found.summary_metadata["profiles/text_summary"].plugin_data
    assert plugin.plugin_name == "text"
    metadata = found.summary_metadata["_hparams_/session_start_info"]
    assert b"rewards.choice.weight" in metadata.plugin_data.content


def test_tensorboard_has_a_step_before_its_checkpoint_is_saved(tmp_path):
    """A kill right after the save: the resumed run does not do that step again."""
    writer = open_writer(tmp_path, tensorboard=True)
    writer.scalars(0, {"policy/kl": 0.5})
    writer.text(0, "profiles", "a")
    writer.progress(0, {})  # the stages' last word before they save
    found = events(tmp_path / "tensorboard" / "profiler")
    writer.close()
    assert points(found, "policy/kl") == [(0, 0.5)]
    assert points(found, "profiles/text_summary") == [(0, b"a")]


def test_a_projector_torn_by_a_kill_is_written_again(tmp_path):
    torn = tmp_path / "tensorboard" / "profiler" / "00003" / "items"
    torn.mkdir(parents=True)
    (torn / "tensors.tsv").write_text("1.0")
    writer = open_writer(tmp_path, tensorboard=True)
    writer.projector(3, "items", np.eye(2), [("item", "a"), ("item", "b")])
    writer.close()
    assert len((torn / "tensors.tsv").read_text().splitlines()) == 2
    listed = torn.parents[1] / "projector_config.pbtxt"
    assert listed.read_text().count("embeddings {") == 1

    listed.write_text('embeddings {\ntensor_name: "items:00003"\ntens')  # torn, too
    writer = open_writer(tmp_path, tensorboard=True)
    writer.projector(4, "items", np.eye(2), [("item", "a"), ("item", "b")])
    writer.close()
    config = text_format.Parse(listed.read_text(), projector.ProjectorConfig())
    (entry,) = config.embeddings
    assert entry.tensor_path == "00004/items/tensors.tsv"
    assert (torn.parents[1] / entry.metadata_path).exists()


def test_projector_has_one_clean_row_a_point(tmp_path):
    names = ["a\tb", "c\r\nd", "", "e\u2028f\x00g", "\udc80"]
    labels = [("item\t", name) for name in names]
    for _ in range(2):  # a resumed run comes by a second time
        writer = open_writer(tmp_path, tensorboard=True)
        writer.projector(3, "items", np.eye(5, dtype=np.float16), labels)
        writer.close()
    root = tmp_path / "tensorboard" / "profiler"
    assert (root / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    (metadata,) = root.rglob("metadata.tsv")
    clean = ["a b", "c d", "-", "e f g", "?"]
    rows = ["kind\tname", *(f"item\t{name}" for name in clean)]
    assert metadata.read_text().splitlines() == rows
    (tensors,) = root.rglob("tensors.tsv")
    assert len(tensors.read_text().splitlines()) == 5


def test_curves_over_something_else_replace_earlier_ones(tmp_path):
    for top in (0.5, 0.75):
        curves = {"cold_start/blue": {10: top, 0: 0.25}, "cold_start/base": {0: 0.0}}
        write_curves(tmp_path, "evaluate", curves)
    folder = tmp_path / "tensorboard" / "evaluate"
    found = events(folder)
    assert points(found, "cold_start/blue") == [(0, 0.25), (10, 0.75)]
    assert set(found.Tags()["tensors"]) == set(curves)
    assert len(list(folder.iterdir())) == 1
