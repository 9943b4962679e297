"""The model of a role: where it comes from, and what is said of it."""

import numpy as np
import pytest

from blue.errors import UserError
from blue.hub import sentence_layout
from blue.models.decoder import Lora
from blue.runtime.sharding import make_mesh
from blue.sources import role
from blue.sources.open_run import open_run
from configs import quickstart


@pytest.fixture
def config():
    return quickstart.get_config("tiny")


def test_every_role_and_stage_has_numbers_of_its_own():
    """Results of earlier runs rest on these: they may not change."""
    assert role.role_seed(0, "profiler") == 0x4F24CDF3
    assert role.stage_id("profiler") == 0xFC37B5A6
    seeds = {role.role_seed(s, r) for s in range(9) for r in ("profiler", "encoder")}
    assert len(seeds) == 18


def test_without_checkpoint_and_stages_it_is_the_preset(config, tmp_path, caplog):
    run = open_run(config, str(tmp_path))
    never = lambda *args, **kwargs: pytest.fail("no stage has finished")
    load = lambda: role.load_role(run, "encoder", stage="encoder", load_start=never)
    model = load()
    assert model.name == "tiny_qwen3, random weights" and model.step == 0
    # rows for the trained tokenizer, and no more than divide well
    assert model.cfg.vocab_size % 8 == 0
    assert 0 <= model.cfg.vocab_size - model.tokenizer.vocab_size < 8
    assert model.params["embed"].shape[0] == model.cfg.vocab_size
    again = load()
    np.testing.assert_array_equal(again.params["embed"], model.params["embed"])
    assert "leaves out" not in caplog.text
    # a stage that has finished and is not in the list is told, not taken in silence
    role.stage_checkpoints(config, str(tmp_path), "encoder").finish({"steps": 1})
    config.stages = ("profiler",)
    load()
    assert "stages=profiler leaves out encoder, which has finished" in caplog.text


def test_adapters_are_asked_for_by_their_rank(config):
    assert role.fresh_adapters(config.profiler) is None
    config.profiler.lora.update(rank=4, alpha=8.0, targets=("q", "o", "q"))
    assert role.fresh_adapters(config.profiler) == Lora(4, 8.0, ("q", "o"))


def test_an_encoder_made_for_shorter_texts_is_told(config, tmp_path, caplog):
    sentence_layout.write(tmp_path, width=64, max_tokens=32, query_prompt="")
    config.encoder.checkpoint, config.encoder.max_tokens = str(tmp_path), 48
    source, directory = role.find_checkpoint(config, "encoder")
    assert (source.directory, directory) == (str(tmp_path), str(tmp_path))
    assert "texts of at most 32 tokens (max_seq_length), and enc" in caplog.text
    assert role.find_checkpoint(config, "profiler")[1] == ""  # none is named


@pytest.mark.parametrize("size", [0, -8, 12])
def test_a_batch_splits_evenly_over_data_and_fsdp(size):
    mesh = make_mesh(2, 4, 1)
    with pytest.raises(UserError, match=f"batch_size = {size} .* multiple of 8,"):
        role.check_divides(size, "batch_size", mesh)
    role.check_divides(16, "batch_size", mesh)
    role.check_divides(4, "batch_size", make_mesh(1, 4, 2))  # tensor splits no batch


def test_a_mesh_that_leaves_matrices_whole_is_told_another():
    told = role.about_fsdp(make_mesh(1, 8, 1), 2)
    assert told.startswith("mesh.data=4 mesh.fsdp=2 splits every matrix; mesh.fsdp=8")
