#!/usr/bin/env bash
# From raw files to evaluation.json; the same command again resumes a stopped run.
#   experiments/xwines/run.sh DATA TOKENIZER [WORKDIR]
# DATA: XWines_Slim_ratings.csv.gz and XWines_Slim_1K_wines.csv.gz
# TOKENIZER: the tokenizer files of a Gemma 3 instruction model
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1 tokenizer=$2 workdir=${3:-runs/xwines}
python -m blue.main --config=configs/profiler_xwines.py --workdir="$workdir" \
  --config.data.path="$data" --config.profiler.tokenizer="$tokenizer" \
  --config.seed=0 --config.log.tensorboard=False
python experiments/xwines/collect.py "$workdir"
python tools/plot_run.py experiments/xwines --out experiments/xwines # extra `plots`
