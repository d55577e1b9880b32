# dsf: two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

BIN := .venv/bin
READY := .venv/.dsf-ready
DEMO := build/demo
TYPECHECK := build/typecheck
PYTHONS := 3.11 3.12 3.13
EXTRAS := --extra train --extra lava --extra onnx --extra nir --extra report --extra robotics --extra search --extra dev

# One worker more than the two cores of the CI's machines: some tests wait, for a clock, a disk or a process.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 3 --dist worksteal

.PHONY: help env demo test test-quick check-pythons performance lint format lock artifact clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: $(READY) ## Create the pinned Python 3.10 environment in .venv

$(READY): requirements.lock pyproject.toml
	@version='import sys; sys.exit(sys.version_info[:2] != (3, 10))'
	if uv --version >/dev/null 2>&1; then
	  uv venv --quiet --allow-existing --python 3.10 .venv
	  UV=(uv)
	else
	  python=
	  for candidate in python3.10 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.10*/bin/python python3 python; do
	    if "$$candidate" -c "$$version" >/dev/null 2>&1; then python=$$candidate; break; fi
	  done
	  if [ -z "$$python" ]; then
	    echo "make: no Python 3.10 found: install uv, or python3.10 (for example with pyenv), then try again" >&2; exit 2
	  fi
	  "$$python" -m venv .venv
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	  UV=($(BIN)/uv)
	fi
	# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would compile torch and sympy for itself (8 s).
	"$${UV[@]}" pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	"$${UV[@]}" pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $(READY)

demo: export MINARI_DATASETS_PATH = $(CURDIR)/$(DEMO)/minari
demo: $(READY) ## Data, training, export, Lava: the whole road on this machine, then the shipped network
	@rm -rf $(DEMO); mkdir -p $(DEMO)/minari
	say() { printf '\n== %s\n' "$$*"; }
	say "1/5 collect 50,000 steps of Hopper with the shipped behaviour policies"
	$(BIN)/dsf-data collect hopper-medium-expert --steps 50000 --seed 0
	say "2/5 train a small spiking policy (about two minutes)"
	$(BIN)/dsf-train dsf/hopper/medium-expert-v1 --out $(DEMO)/run --steps 3000 --model.width 64 --model.blocks 2 \
	  --batch-size 32 --learning-rate 2e-3 --eval-episodes 4 --eval-targets 3600
	say "3/5 fold, quantize to integer spikes, verify"
	$(BIN)/dsf-export $(DEMO)/run --target loihi -o $(DEMO)/hopper.dsf.h5 --episodes 4 --most-episodes 8 --max-score-drop 100
	say "4/5 the fresh network, closed loop in Lava's Loihi simulator"
	$(BIN)/dsf-sim-run $(DEMO)/hopper.dsf.h5 --checkpoint $(DEMO)/run --json $(DEMO)/fresh.json
	say "5/5 the shipped network, closed loop in Lava's Loihi simulator"
	$(BIN)/dsf-sim-run --json $(DEMO)/shipped.json --html $(DEMO)/report.html
	say "done: open $(DEMO)/report.html; figures in $(DEMO)/fresh.json and $(DEMO)/shipped.json"

test: $(READY) ## Run the whole test suite in three workers
	@$(PYTEST)

test-quick: $(READY) ## Run the tests that are quick, of every room (under 90 seconds)
	@$(PYTEST) -m "not slow"

# Lava is frozen on 3.10, so the environments of newer Pythons are not pinned: they get what is current today.
check-pythons: $(READY) ## Run what runs without Lava on newer Pythons, with current torch and numpy (PYTHONS="3.12")
	@uv=uv; if ! uv --version >/dev/null 2>&1; then uv=$(CURDIR)/$(BIN)/uv; fi
	for version in $(PYTHONS); do
	  place=build/python$$version python=$$version  # where there is none, uv fetches it
	  for candidate in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version*/bin/python; do
	    if "$$candidate" -c '' >/dev/null 2>&1; then python=$$candidate; break; fi
	  done
	  $$uv venv --quiet --allow-existing --python "$$python" $$place
	  $$uv pip install --quiet --upgrade --python $$place/bin/python -e '.[train,onnx,nir,report,robotics,search,dev]'
	  $$place/bin/python -c 'import sys, torch, numpy; print("== Python", sys.version.split()[0], "torch", torch.__version__, "numpy", numpy.__version__)'
	  OMP_WAIT_POLICY=passive $$place/bin/python -m pytest -q -n 3 --dist worksteal
	done

performance: $(READY) ## Measure decisions on every engine and in Lava (minutes); write docs/performance.md
	@$(BIN)/python benchmarks/decision.py
	$(BIN)/python benchmarks/lava_decision.py

lint: $(READY) ## Format check, ruff, and mypy on the installed package, tests and scripts
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf $(TYPECHECK) build/lib build/bdist.*
	uv=uv; if ! uv --version >/dev/null 2>&1; then uv=$(BIN)/uv; fi
	$$uv pip install --quiet --python $(BIN)/python --no-deps --target $(TYPECHECK) .
	MYPYPATH=$(TYPECHECK) $(BIN)/mypy -p dsf
	MYPYPATH=$(TYPECHECK):benchmarks:experiments:endurance $(BIN)/mypy tests benchmarks experiments endurance

format: $(READY) ## Apply ruff's formatting and fixes
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

lock: $(READY) ## Resolve the dependencies again (uv.lock stays local, its host-free export is committed)
	@uv=uv; if ! uv --version >/dev/null 2>&1; then uv=$(BIN)/uv; fi
	$$uv lock --upgrade
	$$uv export --quiet $(EXTRAS) --no-emit-project --no-header --format requirements-txt -o requirements.lock >/dev/null

artifact: $(READY) ## Rebuild the shipped Hopper network (about half an hour on two cores)
	@experiments/build_artifact.sh

clean: ## Remove everything that make made
	@rm -rf .venv build
