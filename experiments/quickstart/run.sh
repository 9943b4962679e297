#!/usr/bin/env bash
# The recorded quickstart: configs/quickstart.py as it is, world and weights from seed 7,
# which no choice was made on. $1: an empty workdir.
set -euo pipefail
python -m blue.main --config=configs/quickstart.py --config.seed=7 --workdir="$1"
cp "$1/evaluation.json" experiments/quickstart/results.json
cp "$1/evaluation.md" experiments/quickstart/evaluation.md
python tools/thin_metrics.py "$1/metrics.jsonl" experiments/quickstart/curves.csv
