"""Where checkpoints come from: fakes of the hub, and its own local cache."""

import importlib

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects

from blue.errors import UserError
from blue.hub.source import Source, _download, fetch

FIELD = "profiler.checkpoint"
# the HTTP library of this version of the hub: httpx, or its fork
http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def forget():
    _download.cache_clear()


def refusal(status, kind=errors.HfHubHTTPError):
    request = http.Request("GET", "https://huggingface.co/api/models/owner/name")
    return kind("first line\nsecond", response=http.Response(status, request=request))


def test_a_directory_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    found = fetch("owner/name", FIELD)
    assert found == Source("owner/name", "", "owner/name")


@pytest.mark.parametrize(
    "error, told",
    [
        (refusal(403, errors.GatedRepoError), "accept the licence at https://hugg"),
        (refusal(403), "accept the licence"),
        (refusal(401), "log in with `hf auth login` or HF_TOKEN"),
        (refusal(404, errors.RepositoryNotFoundError), "no repository of that name"),
        (refusal(404, errors.RevisionNotFoundError), "no such revision"),
        (refusal(500), "cannot be fetched from the hub: first line"),
        (errors.LocalEntryNotFoundError("x"), "no network"),
        (errors.OfflineModeIsEnabled("x"), "no network"),
        (errors.HFValidationError("bad name"), "no valid hub id: bad name"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (http.ConnectError("refused"), "cannot be fetched from the hub: refused"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_what_the_hub_refuses_is_told_in_one_line(error, told, monkeypatch):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=told) as caught:
        fetch("owner/name@v1", FIELD)
    line = str(caught.value)
    assert line.startswith(f"{FIELD}=owner/name@v1 ") and "\n" not in line


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "/tmp/no/such", "~/x", "a/b@", ""]
)
def test_what_is_no_hub_id_is_not_asked_for(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(UserError, match="is no directory here, and no hub id"):
        fetch(name, FIELD)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UserError, match="is a file"):
        fetch(str(tmp_path / "model.safetensors"), FIELD)


def test_without_network_the_error_names_it():
    """The real library; the tests run with HF_HUB_OFFLINE."""
    with pytest.raises(UserError, match="no network, or HF_HUB_OFFLINE"):
        fetch("nobody-at-all/no-such-model", FIELD)


def test_what_is_fetched(monkeypatch):
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return f"/cache/snapshots/{COMMIT}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    there = [
        "README.md", "LICENSE", "NOTICE.txt", "USE_POLICY.md", "config.json",
        "model.safetensors", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
        "chat_template.jinja", "1_Pooling/config.json", "modules.json",
        "0_Transformer/model.safetensors",
        "pytorch_model.bin", "model.pt", "modeling_x.py", "onnx/model.json",
        "training_args.bin", "x.pkl", "original/consolidated.safetensors",
    ]  # fmt: skip
    kept = lambda: filter_repo_objects(
        there,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert fetch("o/n@main", FIELD) == Source(
        "o/n@main", COMMIT, f"/cache/snapshots/{COMMIT}"
    )
    assert (asked["repo"], asked["revision"]) == ("o/n", "main")
    assert "token" not in asked  # the library looks where people log in
    assert [*kept()] == there[:14]
    fetch("o/n", "profiler.tokenizer", weights=False)
    assert asked["revision"] is None
    assert not any(name.endswith(".safetensors") for name in kept())
    assert {"tokenizer.json", "chat_template.jinja"} <= {*kept()}


def test_the_local_cache_answers_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    for name in ("owner/name", "owner/name@main", f"owner/name@{COMMIT}"):
        found = fetch(name, FIELD)
        assert found == Source(name, COMMIT, str(repo / "snapshots" / COMMIT))
    with pytest.raises(UserError, match="is not \\(all\\) in the hub's local cache"):
        fetch("owner/name@v2", FIELD)
