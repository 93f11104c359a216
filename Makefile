# One environment for almost everything: .venv, made from pyproject.toml and constraints.txt, and again when either changes.
PYTHON ?= python3
JOBS ?= 2
OLDEST_TRANSFORMERS := 5.17.0
NEWEST_TRANSFORMERS := 5.24.0

# triton is pinned too: tests/fla reaches into its interpreter. Installed without what they depend on, which is there.
FLA := flash-linear-attention fla-core==0.6.0 triton==3.7.1 einops==0.8.2

# For timing: glibc keeps what is freed, so that no call pays for pages that another gave back.
STEADY := OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

INSTALLED := .venv/installed
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test slow remote lint oldest newest fla evidence reference bench lab wheel docs clean

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)
	@echo 'Another Python than python3: make demo PYTHON=python3.12'

demo: $(INSTALLED) ## run notebooks/10_layers on toy-moe; results in runs/demo
	.venv/bin/qwenlab demo

test: $(INSTALLED) ## the tests, without the slow and the remote ones
	$(RUN) -m pytest -m "not slow and not remote" -n $(JOBS) --dist worksteal

slow: $(INSTALLED) ## the slow tests
	$(RUN) -m pytest -m "slow and not remote" -n $(JOBS) --dist worksteal

remote: $(INSTALLED) ## the tests of Ray, object stores, MLflow and lm-evaluation-harness, with servers of their own on this machine
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[ray,s3,mlflow,harness,remote]'
	$(RUN) -m pytest -m remote

lint: $(INSTALLED) ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

oldest: .venv-oldest/installed ## the tests of everything that touches a model, on the oldest transformers we support
newest: .venv-newest/installed ## the same tests on the newest one
oldest newest:
	.venv-$@/bin/python -m pytest -m "not slow and not remote" -n $(JOBS) --dist worksteal tests/checkpoint tests/capture tests/probes tests/interventions tests/speculative

fla: .venv-fla/installed ## the tests with flash-linear-attention installed: its kernels in Triton's interpreter, models on the CPU
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 .venv-fla/bin/python -m pytest tests/fla

evidence: $(INSTALLED) ## error rates of our own checks, by simulation (about 15 minutes); results in evidence/results
	OMP_NUM_THREADS=1 $(RUN) -m evidence.lossless

reference: $(INSTALLED) ## results of two checkouts, compared bit for bit: make reference BEFORE=path AFTER=path (10 minutes)
	$(RUN) -m evidence.reference --before $(BEFORE) --after $(AFTER)

bench: $(INSTALLED) ## what watching costs, as ratios to the bare forward
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(STEADY) $(RUN) -m benchmarks
	$(RUN) -m benchmarks.experiments
	$(STEADY) $(RUN) -m benchmarks.decoding
	$(STEADY) $(RUN) -m benchmarks.remembering
	$(STEADY) $(RUN) -m benchmarks.ablating
	$(STEADY) $(RUN) -m benchmarks.streaming --geometry tiny --layers 8
	$(STEADY) $(RUN) -m benchmarks.sweeping

lab: $(INSTALLED) ## JupyterLab in notebooks/, each .py there paired with an .ipynb
	$(RUN) -m jupytext --quiet --sync notebooks/*.py
	JUPYTER_PREFER_ENV_PATH=1 .venv/bin/jupyter-lab --notebook-dir=notebooks

wheel: $(INSTALLED) ## a wheel in dist/, with the toys and the notebooks, for `pip install` without a clone
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

docs: $(INSTALLED) ## the documentation with its API reference, in build/docs
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[docs]'
	rm -rf docs/reference/generated build/docs
	OMP_NUM_THREADS=1 $(RUN) -m sphinx --quiet --fail-on-warning --keep-going --jobs auto -d build/doctrees docs build/docs

clean: ## remove environments and caches; runs/ stays
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "qwenlab needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -c constraints.txt -e '.[test,dev]'
	@touch $@

# An environment beside .venv: it sees all that .venv has, and lies above it with what differs.
.venv-%/installed: $(INSTALLED)
	$(RUN) -m venv .venv-$*
	.venv-$*/bin/python -c "import pathlib, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'beside.pth').write_text( \
	  'import site; site.addsitedir(' + repr('$(shell $(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))")') + ')\n')"
	.venv-$*/bin/python -m pip install $(DIFFERENT)
	@touch $@

.venv-oldest/installed: DIFFERENT = transformers==$(OLDEST_TRANSFORMERS)
.venv-newest/installed: DIFFERENT = transformers==$(NEWEST_TRANSFORMERS)
.venv-fla/installed: DIFFERENT = -c constraints.txt --no-deps $(FLA)
