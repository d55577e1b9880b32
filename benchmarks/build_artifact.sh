#!/usr/bin/env bash
# Rebuild the network that ships with dsf: collect, train, export. Used by `make artifact`.
set -euo pipefail
cd "$(dirname "$0")/.."
name=hopper-medium-expert
work=build/artifact
mkdir -p "$work/minari"
export MINARI_DATASETS_PATH="$PWD/$work/minari"
.venv/bin/dsf-data collect "$name-v0" --steps 100000 --seed 0 --overwrite
resume=()
if [ -f "$work/run/checkpoint.safetensors" ]; then resume=(--resume); fi
nice -n 5 .venv/bin/dsf-train dsf/hopper/medium-expert-v0 --out "$work/run" --steps 10000 --seed 0 \
  --checkpoint-every 500 "${resume[@]}"
.venv/bin/dsf-export "$work/run" --target loihi --bits 8 --seed 2000 --episodes 20 --target-return 4500 -o "runtime/artifacts/$name.dsf.h5"
.venv/bin/python benchmarks/strip_checkpoint.py "$work/run" "runtime/artifacts/$name.safetensors"
