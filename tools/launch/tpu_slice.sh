#!/usr/bin/env bash
# Runs BLUE on every host of a Cloud TPU slice and starts it again when it was preempted.
# Not run by the authors against Google Cloud: it needs an account. Tests run it with a
# program in gcloud's place.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: tools/launch/tpu_slice.sh --name=NAME --zone=ZONE [OPTION ...] -- ARGUMENT ...

Asks for a TPU slice (queued resources) unless it is there, waits for it, installs this
checkout on all its hosts, runs python -m blue.main ARGUMENT ... on all of them, and runs
it again until it is done. The workdir among the arguments must be one that all hosts see
and that outlives them, on a file system that --setup mounts. platform=tpu and
distributed.auto=True (jax finds the hosts) are set already.

  --name=NAME             of the request and of the slice
  --zone=ZONE             one that has such slices
  --project=PROJECT       default: gcloud's
  --accelerator-type=T    default: v6e-64, 16 hosts of 4 chips
  --runtime-version=V     default: v2-alpha-tpuv6e
  --extras=LIST           of pyproject.toml, default: tpu,gcs
  --setup=COMMAND         run on every host of a new slice before the first start
  --spot                  cheaper; may be taken away at any time, and is asked for again
  --max-restarts=N        default: 20
  --pause=SECONDS         between a stop and the next start, default: 30
  --poll=SECONDS          between two looks whether the slice is there, default: 60
  --delete                delete the slice at the end, whatever the end
  --dry-run               print the commands and run none
  --help

What follows an exit of blue.main, by the worst of all hosts' codes:
  0 on all of them        done
  2, 70, 130              stop: a mistake, non-finite numbers, an interruption
  else                    run again: 75 preempted, 134 another host was lost, 71 a hang,
                          a host that is gone says nothing
The script ends with that code.
EOF
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name="" zone="" project="" accelerator=v6e-64 runtime=v2-alpha-tpuv6e extras=tpu,gcs setup=""
max_restarts=20 pause=30 poll=60 spot="" delete="" dry_run=""
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator-type=*) accelerator=${1#*=} ;;
    --runtime-version=*) runtime=${1#*=} ;;
    --extras=*) extras=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --spot) spot=yes ;;
    --delete) delete=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$1: not understood; arguments of blue.main come after --; see --help" ;;
  esac
  shift
done
[[ -n $name ]] || fail "--name is missing; see --help"
[[ -n $zone ]] || fail "--zone is missing; see --help"
(($#)) || fail "nothing to run: arguments of blue.main come after --; see --help"

given=(--config.platform=tpu --config.distributed.auto=True) # before ARGUMENT ...
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
tpus=(gcloud compute tpus)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Prints the command, and runs it unless this is a dry run.
run() {
  printf '+ %s\n' "$(printf '%q ' "$@")" >&2
  [[ -n $dry_run ]] || "$@"
}

on_all_hosts() { run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; nothing where there is no such request.
state() {
  "${tpus[@]}" queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

ask() {
  run "${tpus[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot:+--spot}
}

give_back() { run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet; }

# Returns when the slice is there; a slice that was taken away is asked for again.
have_slice() {
  if [[ -n $dry_run ]]; then
    ask
    return
  fi
  while true; do
    case $(state) in
      ACTIVE) return ;;
      "") ask ;;
      FAILED | SUSPENDED)
        give_back
        installed=""
        sleep $((10 * pause)) # the lock of a host that is gone holds for five minutes
        continue
        ;;
    esac
    sleep "$poll"
  done
}

# This checkout's files that git knows, as they are now, in ~/blue of every host. The
# Python of the runtime is older than ours: uv brings one.
install() {
  git -C "$root" ls-files -z | tar -C "$root" --null -T - -czf "$scratch/blue.tar.gz"
  run "${tpus[@]}" tpu-vm scp "$scratch/blue.tar.gz" "$name:" "${where[@]}" --worker=all
  on_all_hosts "set -e; rm -rf blue; mkdir blue; tar -xzf blue.tar.gz -C blue
python3 -m pip install --quiet --user uv
[ -x blue-env/bin/python ] || python3 -m uv venv --quiet --python 3.12 blue-env
python3 -m uv pip install --quiet --python blue-env/bin/python -e './blue[$extras]'"
  [[ -z $setup ]] || on_all_hosts "$setup"
}

# One run on all hosts; the worst of their exit codes in `code`. A host whose connection
# breaks tells none.
attempt() {
  local host
  code=0
  on_all_hosts "cd blue && ../blue-env/bin/python -m blue.main$(printf ' %q' "${given[@]}" "$@")
echo \"blue.main ended with \$?\"" | tee "$scratch/output" || code=255
  sed -n 's/.*blue\.main ended with \([0-9]*\).*/\1/p' "$scratch/output" >"$scratch/codes"
  while read -r host; do
    case $host in
      0) ;;
      2 | 70 | 130) code=$host && return ;;
      *) code=$host ;;
    esac
  done <"$scratch/codes"
}

installed="" restarts=0
while true; do
  have_slice
  if [[ -z $installed ]]; then
    install
    installed=yes
  fi
  attempt "$@"
  case $code in
    0 | 2 | 70 | 130) break ;;
  esac
  if ((restarts >= max_restarts)); then
    echo "exit code $code after $restarts restarts, the most of --max-restarts" >&2
    break
  fi
  restarts=$((restarts + 1))
  echo "exit code $code: start no. $((restarts + 1)) in $pause s" >&2
  sleep "$pause"
  # what a broken connection left running; [b] as this must not find itself
  on_all_hosts "pkill -KILL -f '[b]lue.main' || true" || installed=""
done
[[ -z $delete ]] || give_back
exit "$code"
