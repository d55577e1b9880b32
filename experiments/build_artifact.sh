#!/usr/bin/env bash
# Rebuild the network that ships with dsf: collect, train, export. Used by `make artifact`; goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
name=hopper-medium-expert
work=build/artifact
mkdir -p "$work/minari"
export MINARI_DATASETS_PATH="$PWD/$work/minari"
.venv/bin/dsf-data collect "$name" --steps 100000 --seed 0 --overwrite
resume=()
if [ -f "$work/run/checkpoint.safetensors" ]; then resume=(--resume); fi
nice -n 5 .venv/bin/dsf-train dsf/hopper/medium-expert-v1 --out "$work/run" --seed 0 --steps 12000 --batch-size 32 \
  --learning-rate 2e-3 --checkpoint-every 500 --eval-episodes 20 --eval-targets 3600 "${resume[@]}"
.venv/bin/dsf-export "$work/run" --target loihi --seed 2000 --episodes 20 -o "runtime/artifacts/$name.dsf.h5"
.venv/bin/python experiments/strip_checkpoint.py "$work/run" "runtime/artifacts/$name.safetensors"
