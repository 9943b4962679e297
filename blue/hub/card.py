"""The model card, the licence and the notices of exported weights.

Facts are plain JSON (training_config.json), so that a card can be rewritten after an
evaluation. Names of data sets and checkpoints are escaped; cards have no item titles or
profiles.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from etils import epath
from huggingface_hub.repocard import metadata_load

from blue.hub.source import LICENCE_FILES, Source
from blue.text.markdown import escape
from blue.text.templates import TEMPLATES

FACTS = "training_config.json"
CARD = "README.md"
UNKNOWN = {"license": "other", "license_name": "unknown"}
MODIFIED = "These weights were modified: they were trained further with BLUE."


# --- licence


def licence(source: Source, *, unstated: Mapping[str, str]) -> dict[str, str]:
    """Licence fields of the card: the source's; empty for weights that started random.

    unstated: the family's fields, for a source that states none; {}: unknown.
    """
    if began_random(source):
        return {}
    fields = _front_matter(source)
    keys = ("license", "license_name", "license_link")
    values = {k: fields[k] for k in keys if isinstance(fields.get(k), str)}
    kept = {k: v for k, v in values.items() if v.isprintable() and len(v) < 300}
    return kept if "license" in kept else dict(unstated or UNKNOWN)


def copy_notices(source: Source, directory: epath.PathLike, *, notice: str) -> None:
    """Copies the source's licence files, and writes the family's NOTICE.

    notice: the family's; "": nothing.
    """
    directory = epath.Path(directory)
    if not source.directory:
        return
    for pattern in LICENCE_FILES:
        for path in epath.Path(source.directory).glob(pattern):
            if path.is_file():
                (directory / path.name).write_bytes(path.read_bytes())
    passed_on = directory / "NOTICE"
    found = passed_on.read_bytes() if passed_on.exists() else b""
    text = found.decode(errors="replace")
    if notice and not began_random(source):
        missing = [part for part in (notice, MODIFIED) if part not in text]
        if missing:
            text = text.rstrip() + "\n\n" if text else ""
            passed_on.write_text(text + "\n\n".join(missing) + "\n")


def began_random(source: Source) -> bool:
    """Whether a model that started from `source` has no weights of others.

    It has no source, or the source is an export of ours that says so.
    """
    if not source.directory:
        return True
    path = epath.Path(source.directory) / FACTS
    try:
        return json.loads(path.read_text())["random_weights"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def base_model(source: Source) -> str:
    """The hub id of the source, or the base that the source itself names."""
    if source.commit:
        return source.checkpoint.partition("@")[0]
    named = _front_matter(source).get("base_model") if source.directory else None
    if isinstance(named, str) and named.isprintable() and named.count("/") == 1:
        return named
    return ""


def _front_matter(source: Source) -> dict[str, Any]:
    """The YAML head of the source's README.md; empty where there is none."""
    path = epath.Path(source.directory) / CARD
    if not path.exists():
        return {}
    with tempfile.NamedTemporaryFile("w", suffix=".md", encoding="utf-8") as file:
        try:  # metadata_load reads only local files
            file.write(path.read_text("utf-8"))
            file.flush()
            return metadata_load(file.name) or {}
        except Exception:  # untrusted YAML may make the reader raise anything
            return {}


# --- the card


def render(facts: Mapping[str, Any], evaluation: str) -> str:
    """README.md of an export.

    Args:
        facts: content of training_config.json.
        evaluation: the section on it, in Markdown; empty: not evaluated.
    """
    profiler = facts["role"] == "profiler"
    head = {
        **facts["licence"],
        **({"base_model": facts["base_model"]} if facts["base_model"] else {}),
        "library_name": "transformers" if profiler else "sentence-transformers",
        "pipeline_tag": "text-generation" if profiler else "sentence-similarity",
        "tags": ["blue", "user-profiles"]
        + ([] if profiler else ["sentence-transformers", "feature-extraction"]),
    }
    front = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in head.items()]
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {'Profiler' if profiler else 'Encoder'} trained with BLUE",
        _PROFILER if profiler else _ENCODER,
        "\n".join(f"* {line}" for line in _facts(facts)),
        "## Use",
        _use_profiler(facts) if profiler else _USE_ENCODER,
        "## Evaluation",
        evaluation or _not_evaluated(facts),
        "## Licence",
        _licence_words(facts),
    ]
    return "\n\n".join(parts) + "\n"


_PROFILER = (
    "Reads what a user chose and writes a short profile of them in plain words, trained"
    " by the method of BLUE (https://arxiv.org/abs/2605.06981)."
)
_ENCODER = (
    "Turns a user's profile or history, and item texts, into unit vectors, near each "
    "other where the user takes the item (BLUE, https://arxiv.org/abs/2605.06981)."
)
_USE_ENCODER = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("DIRECTORY")
users = model.encode(["The user likes quiet books."], prompt_name="query")
items = model.encode(["A title", "Another title"])
print(model.similarity(users, items))
```

The tokenizer appends the token that is pooled. Vectors have unit length."""


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """The facts as lines of the card."""
    commit = f", commit {facts['commit']}" if facts["commit"] else ""
    began = facts["base_model"] or PurePath(facts["checkpoint"]).name
    lines = [
        f"Began with: {escape(began)}{commit}"
        if began
        else f"Began with: {escape(facts['model'])}",
        f"Step: {facts['step']} of stage {facts['stage']}",
        f"Data: {escape(facts['data'])} (fingerprint {facts['fingerprint']})",
        f"Code: blue-profiles, version {facts['version']}, "
        f"commit {facts['git_commit'] or 'unknown'}",
        f"Settings: `{FACTS}`",
    ]
    if facts["random_weights"]:
        lines.append("All weights began random: no weights of others are in it")
    return lines


def _use_profiler(facts: Mapping[str, Any]) -> str:
    """Snippets for transformers and vLLM, and the prompt it was trained with."""
    style = facts["config"]["prompts"]["style"]
    prompt = TEMPLATES[style].profile
    return f"""\
One user message, the prompt it was trained with around a history:

```text
{prompt}
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForCausalLM.from_pretrained("DIRECTORY", dtype="auto")
messages = [{{"role": "user", "content": PROMPT}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt",
    return_dict=True,
)
out = model.generate(**inputs, max_new_tokens={facts["max_completion_tokens"]})
print(tokenizer.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

```python
from vllm import LLM

llm = LLM("DIRECTORY")
sampling = llm.get_default_sampling_params()  # of generation_config.json
sampling.max_tokens = {facts["max_completion_tokens"]}
no_thinking = {{"enable_thinking": False}}
answers = llm.chat(messages, sampling, chat_template_kwargs=no_thinking)
```

vLLM was not run by the authors."""


def _not_evaluated(facts: Mapping[str, Any]) -> str:
    value = facts["validation"]
    validation = "" if value is None else f" NDCG@10 on validation users: {value:.3f}."
    return f"Not evaluated yet.{validation}"


def _licence_words(facts: Mapping[str, Any]) -> str:
    licence = facts["licence"]
    if facts["random_weights"]:
        return "None is stated: whoever trained these weights decides."
    if licence == UNKNOWN:
        return (
            "Unknown: the model it began with states none in its directory. Look up "
            "its licence before passing these weights on."
        )
    files = " See the licence files beside this page." if facts["notices"] else ""
    name = licence.get("license_name", licence["license"])
    return f"That of the model it began with: {escape(name)}.{files}\n\n{MODIFIED}"
