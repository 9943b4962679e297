"""sentence-transformers directories in and out."""

import json

import pytest

from blue.errors import UserError
from blue.hub import sentence_layout

OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def make(directory, *, modules=None, pooling=None, **files):
    """A layout in the newest form, of which a test breaks one part."""
    chain = modules or [
        {"path": folder, "type": kind}
        for folder, kind in zip(("", "1_Pooling", "2_N"), NEW.values(), strict=True)
    ]
    (directory / "1_Pooling").mkdir(parents=True)
    files = {
        "modules": chain,
        "1_Pooling/config": pooling or {"pooling_mode": "lasttoken"},
        **files,
    }
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_a_plain_model_has_no_layout(tmp_path):
    assert sentence_layout.read(tmp_path) == (str(tmp_path), None, "", None)


def test_what_is_written_is_read(tmp_path):
    sentence_layout.write(tmp_path, width=8, max_tokens=64, query_prompt="Q: ")
    assert sentence_layout.read(tmp_path) == (str(tmp_path), "Q: ", "", 64)
    types = [m["type"] for m in json.loads((tmp_path / "modules.json").read_text())]
    assert types == [OLD + kind for kind in sentence_layout.CHAIN]


def test_the_newest_form_and_a_transformer_in_a_folder(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    modules = [
        {"path": "0_Transformer", "type": NEW["Transformer"]},
        {"path": "1_Pooling", "type": NEW["Pooling"]},  # and no Normalize
    ]
    prompts = {"prompts": {"query": "", "document": "text: "}}
    make(
        tmp_path,
        modules=modules,
        config_sentence_transformers=prompts,
        **{"0_Transformer/sentence_bert_config": {"max_seq_length": 32}},
    )
    folder = str(tmp_path / "0_Transformer")
    assert sentence_layout.read(tmp_path) == (folder, "", "text: ", 32)


@pytest.mark.parametrize(
    "broken, told",
    [
        (
            {"pooling": {"pooling_mode": "mean"}},
            "pooling_mode is 'mean'; must be 'last",
        ),
        ({"pooling": {"pooling_mode": ["cls", "lasttoken"]}}, "must be 'lasttoken'"),
        (
            {"pooling": {"pooling_mode_lasttoken": False}},
            "1_Pooling/config.json: pooling_mode_lasttoken is False; must be true",
        ),
        (
            {
                "pooling": {
                    "pooling_mode_lasttoken": True,
                    "pooling_mode_mean_tokens": True,
                }
            },
            "pooling_mode_mean_tokens is True; must be false",
        ),
        (
            {
                "modules": [
                    {"path": "", "type": NEW["Transformer"]},
                    {"path": "1_Pooling", "type": NEW["Pooling"]},
                    {"path": "2_Dense", "type": OLD + "Dense"},
                ]
            },
            "module 2 has type 'sentence_transformers.models.Dense'; must be",
        ),
        ({"modules": [{"path": "", "type": "evil.Transformer"}]}, "'evil.Transformer'"),
        (
            {"modules": [{"path": "../..", "type": NEW["Transformer"]}]},
            "path is '../..'; must be a sub-folder",
        ),
        (
            {"modules": [{"path": "", "type": NEW["Transformer"]}]},
            "its modules are Transformer; must be",
        ),
        ({"modules": {"path": ""}}, "modules.json: must be a JSON list of objects"),
        (
            {"config_sentence_transformers": {"prompts": {"query": 3}}},
            "prompts.query is 3; must be text",
        ),
        ({"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case"),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else "",
)
def test_other_layouts_are_refused(broken, told, tmp_path):
    make(tmp_path, **broken)
    with pytest.raises(UserError) as caught:
        sentence_layout.read(tmp_path)
    assert told in str(caught.value)
