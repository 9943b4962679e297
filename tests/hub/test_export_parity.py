"""Exports in the libraries they are made for, against our own answers. Needs torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.hub import export
from blue.hub.model import Model
from blue.inference.embed import make_embed_programs, make_embedder
from blue.models import families
from blue.models.params import make_init
from blue.runtime.shapes import Precision
from blue.runtime.sharding import make_mesh
from blue.text import prompts
from blue.text.tokenizer import train_tokenizer
from blue.workdir.checkpoints import Checkpoints
from tests.helpers import model_answers

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pytestmark = pytest.mark.parity

WORDS = ["red running shoes", "quiet books about rivers", "Amélie (2001)", "garden"]
CONFIG = {"prompts": {"style": "full"}}


def make_export(tmp_path, preset, role, **fields):
    """(directory, model): a tiny model of random weights, exported as after a stage."""
    tokenizer = train_tokenizer(WORDS * 20, vocab_size=520)
    cfg = families.preset(preset)
    cfg = dataclasses.replace(cfg, vocab_size=tokenizer.vocab_size + 3, **fields)
    params = random_params(cfg, make_mesh(1, -1, 1))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, milestone_every=0)
    checkpoints.save_best(3, params, {}, 0.0)
    model = Model(cfg, params, tokenizer, "small, random weights")
    run = export.RunFacts(
        stage=role, config=CONFIG, data="made up", fingerprint="0", validated=False,
        sampling_temperature=0.7, max_completion_tokens=9, max_tokens=64,
        query_prompt=prompts.query_prefix("Find it") if role == "encoder" else "",
    )  # fmt: skip
    export.write(checkpoints, model, tmp_path, role, run)
    return tmp_path / "export" / role, model


def random_params(cfg, mesh):
    """Random parameters under which norms matter, too."""
    params = make_init(cfg, mesh, "float32")(np.uint32(3))
    rng = np.random.default_rng(4)
    noise = lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32)
    noisy = jax.tree.map(
        lambda x: jax.device_put(noise(np.asarray(x)), x.sharding), params
    )
    # small inputs, lest every token predict itself through a tied head
    return noisy | {"embed": params["embed"] * 0.1}


@pytest.mark.parametrize("preset", ["tiny_gemma3", "tiny_qwen3"])
def test_transformers_writes_the_same_profiles(preset, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = {"tied": "qwen3" not in preset}  # a head of its own, for one of them
    directory, model = make_export(tmp_path, preset, "profiler", **tied)
    there = AutoModelForCausalLM.from_pretrained(directory).eval()
    words = AutoTokenizer.from_pretrained(directory)
    message = "Here is a history: [red running shoes], [Amélie (2001) | 4]"
    ids = words.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    ours = np.array([model.tokenizer.chat(message)], np.int32)
    np.testing.assert_array_equal(ids["input_ids"].numpy(), ours)
    params = jax.tree.map(jnp.asarray, jax.device_get(model.params))  # one device
    tokens, mask = jnp.asarray(ours), jnp.ones(ours.shape, bool)
    with torch.no_grad():
        logprobs = there(**ids).logits.log_softmax(-1).numpy()
    found = model_answers.logprobs(params, model.cfg, tokens, mask)
    np.testing.assert_allclose(found, logprobs, atol=2e-5)
    # greedy text, up to the end token, by generate's own rules
    out = there.generate(**ids, do_sample=False, max_new_tokens=12)
    text = words.decode(out[0, ours.shape[1] :], skip_special_tokens=True)
    greedy = model_answers.greedy(params, model.cfg, tokens, mask, new_tokens=12)
    greedy = np.asarray(greedy)[0].tolist()
    ends = [n for n, i in enumerate(greedy) if i in model.tokenizer.end_ids]
    ours_text = model.tokenizer.decode(greedy[: ends[0] if ends else None])
    assert ours_text == text and len(text) > 3
    sampling = there.generation_config
    assert sampling.do_sample and sampling.temperature == 0.7 and sampling.top_k == 0


@pytest.mark.parametrize("preset", ["tiny_qwen3", "tiny_gemma3"])
def test_sentence_transformers_gives_the_same_vectors(preset, tmp_path):
    from sentence_transformers import SentenceTransformer

    directory, model = make_export(tmp_path, preset, "encoder")
    library = SentenceTransformer(str(directory), device="cpu")
    assert library.max_seq_length == 64
    mesh = make_mesh(1, -1, 1)
    precision = Precision("float32", "float32")
    run = make_embed_programs(
        model.cfg, mesh, precision, lengths=(64, 256), batch_size=8
    )
    embed = make_embedder(
        model.cfg, model.tokenizer, mesh, run, max_tokens=64, batch_size=8
    ).embed
    texts = [*WORDS, "", "garden " * 8, "quiet red " * 90]
    for name, prefix in (("query", "Instruct: Find it\nQuery:"), ("document", "")):
        theirs = library.encode(texts, prompt_name=name)
        ours = embed(model.params, [prefix + text for text in texts])
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert library.similarity_fn_name == "cosine"
