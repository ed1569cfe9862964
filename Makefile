# Everything a user types. Each target sets up what it needs; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Only `make mutate` needs these; what else they need is in constraints.txt.
MUTATION := mutmut==3.8.1 coverage==7.17.3 libcst==1.9.0 linkify-it-py==2.2.0 mdit-py-plugins==0.7.0 setproctitle==1.3.8 textual==8.2.8
BENCH := .ratchet/tmp/bench
PEERS := $(BENCH)/envs/trl-1.16/.ready $(BENCH)/envs/trl-1.12/.ready
AUDIT := $(BENCH)/envs/audit
PIP_AUDIT := pip-audit==2.10.1
export DO_NOT_TRACK := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test lint mutate bench bench-envs audit fuzz repro ui clean setup

run: $(READY)  ## raw data to champion model, end to end
	@$(BIN)/ratchet run
	@command -v ratchet >/dev/null || echo "\`ratchet\` lies in $(BIN); \`source $(BIN)/activate\` brings it into this shell"

test: $(READY)  ## lint, types and all tests
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(READY)  ## style, layers and types
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

mutate: $(READY)  ## plant errors in the formulas and the gate, one at a time; the tests must notice 90 % of them
	@$(BIN)/python -c 'import mutmut' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps $(MUTATION)
	$(BIN)/python -m bench.mutation

bench: $(READY) bench-envs  ## ours beside TRL on one core: SFT, reward model, DPO, PPO; fails when the numbers differ
	@failed=0; for size in S M; do for one in sft reward dpo ppo; do \
	  $(BIN)/python -m bench.peers.$$one --size $$size || failed=1; done; done; \
	$(BIN)/python -m bench.peers.report; exit $$failed

bench-envs: $(PEERS)  ## the peers' own environments

$(BENCH)/envs/trl-%/.ready: bench/peers/constraints-trl-%.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "installing TRL $* into $(@D) (once, some minutes) ..."
	$(@D)/bin/python -m pip install --quiet --requirement $<
	@touch $@

audit: $(READY) $(AUDIT)/.ready  ## known vulnerabilities of the pinned packages; 2 where the advisories cannot be reached
	$(BIN)/python -m bench.audit --program $(AUDIT)/bin/pip-audit

$(AUDIT)/.ready: constraints.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt $(PIP_AUDIT)
	@touch $@

fuzz: $(READY)  ## 20,000 broken inputs; each must be accepted rightly or refused in one sentence (half an hour)
	$(BIN)/python -m bench.fuzz_inputs

repro: $(READY)  ## the science alone: DVC, no server
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

ui: $(READY)  ## the Prefect and MLflow pages of this project's own stores
	@$(BIN)/ratchet ui

clean:  ## temporary state only; models, data and registry stay
	@test ! -x $(BIN)/ratchet || $(BIN)/ratchet clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Ratchet needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (once, some minutes) ..."
	$(BIN)/python -m pip install --quiet --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
