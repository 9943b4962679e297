#!/usr/bin/env bash
# The recorded quickstart: the config as it is; no choice was made on its seed.
# $1: an empty workdir.
set -euo pipefail
python -m blue.main --config=configs/quickstart.py --workdir="$1"
cp "$1/evaluation.json" experiments/quickstart/results.json
cp "$1/evaluation.md" experiments/quickstart/evaluation.md
python -m tools.records curves "$1/metrics.jsonl" experiments/quickstart/curves.csv
