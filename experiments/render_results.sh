#!/bin/bash
# Writes every table of docs/results.md that comes from docs/results.jsonl, and the picture, from the lines that are there.
set -euo pipefail
cd "$(dirname "$0")/.."
bench=${DSF_BENCH:-.venv/bin/dsf-bench}
for name in table1_mujoco table1_longer paper_models table3_ablations table4_context table5_delayed_reward room_to_lose; do
  "$bench" table "$name" --results docs/results.jsonl --markdown docs/results.md > /dev/null
done
"$bench" table table1_mujoco --results docs/results.jsonl --aggregate-plot docs/nine_sets.png > /dev/null
"$bench" table adroit_pen --spec experiments/adroit_pen.yaml --results docs/results.jsonl --markdown docs/results.md > /dev/null
