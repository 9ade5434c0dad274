# Each target works as the first command on a machine that has git, make and Python >= 3.11.
# Written for GNU make 3.81 (macOS) and any POSIX shell; paths are relative, so the checkout may lie anywhere.

# Options of the targets. Assigned here, so that only make's command line sets them, never a stray
# environment variable; exported, so that the shell quotes them and their text is never part of a command.
SUB =
TRACK =
SEED =
DATA =
A =
B =
OUT =
RECORD =
ARGS =
export SUB TRACK SEED DATA A B OUT RECORD ARGS

# Options of the set-up, from the command line or the environment.
# TORCH_INDEX: URL of the package index to take torch from. TRITON=1: install triton without a GPU too, as the
# tests need it: they run its kernels in its interpreter and compile them for GPUs that are not here.
TORCH_INDEX ?=
TRITON ?= $(if $(filter test test-slow,$(MAKECMDGOALS)),1)
# The container's, of `image` and `docker-bench`.
# DEVICE: cuda or cpu, the build of torch; cuda where there is an NVIDIA GPU. BASE_IMAGE: Python >= 3.11 on
# Debian, best with its digest. WHEELS: a folder below this one with every wheel, for a build without an index.
DOCKER ?= docker
DOCKER_BUILD_OPTIONS ?=
DOCKER_RUN_OPTIONS ?=
BASE_IMAGE ?= python:3.12-slim
IMAGE ?= speedrun-bench
DEVICE ?=
WHEELS ?=
export DOCKER DOCKER_BUILD_OPTIONS DOCKER_RUN_OPTIONS BASE_IMAGE IMAGE DEVICE WHEELS
PYTHON ?= python3 python3.13 python3.12 python3.11 python
export TORCH_INDEX TRITON

# .venv is private: its modules' bytecode is kept there whatever the shell asks for elsewhere. Without it each
# start compiles torch's sources anew: an import took 5.4 s instead of 2.3, a warm compile 14 s more.
unexport PYTHONDONTWRITEBYTECODE

VENV = .venv
STAMP = $(VENV)/.stamp
PY = $(VENV)/bin/python
BENCH = $(PY) -m bench
# A process a core, each of about 1.2 GB: four at most.
PYTEST = $(PY) -m pytest -q -n logical --maxprocesses 4 --dist worksteal
RECIPE = "$${SUB:?name a recipe, as in SUB=submissions/quick.toml}"
OPTIONS = $${TRACK:+--track "$$TRACK"} $${SEED:+--seed "$$SEED"} $${DATA:+--data "$$DATA"} $$ARGS

.DEFAULT_GOAL := help
.PHONY: help setup bench plan show diff prove kernels gpu-check verify leaderboard sweep horizon compare gate arch replay perf perf-levers perf-core data doctor image docker-bench test test-slow fuzz test-container lint lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## build .venv from requirements.lock and the torch pin [TORCH_INDEX= TRITON=1 PYTHON=]

bench: $(STAMP) ## train, evaluate and record a recipe: SUB= [TRACK= SEED= DATA= ARGS=]
	@$(BENCH) launch $(RECIPE) $(OPTIONS)

plan: $(STAMP) ## what a run would do, cost and need: SUB= [TRACK= ARGS=]
	@$(BENCH) plan $(RECIPE) $(OPTIONS)

show: $(STAMP) ## a recipe with its base resolved: SUB= [ARGS=]
	@$(BENCH) show $(RECIPE) $(OPTIONS)

diff: $(STAMP) ## what sets two recipes apart: A= B= [ARGS=]
	@$(BENCH) diff "$${A:?name two recipes: A= and B=}" "$${B:?name two recipes: A= and B=}" $$ARGS

prove: $(STAMP) ## check the fused kernels against their references on this device [ARGS=]
	@$(BENCH) prove $$ARGS

kernels: $(STAMP) ## time the kernels beside eager and compiled references [ARGS=]
	@$(BENCH) kernels $$ARGS

gpu-check: $(STAMP) ## proofs, kernel times and training speed of a GPU as JSON, in 9 minutes: OUT= [ARGS=]
	@$(BENCH) gpu-check --out "$${OUT:?name a folder, as in OUT=leaderboard/hardware/h200}" $$ARGS

verify: $(STAMP) ## check records against what they claim [ARGS=]
	@$(BENCH) verify $$ARGS

leaderboard: $(STAMP) ## rebuild the board from the records [ARGS=--check]
	@$(BENCH) leaderboard $$ARGS

sweep: $(STAMP) ## plan and run a sweep: SUB=submissions/sweeps/warmdown-d4.toml [TRACK= DATA= ARGS=--plan]
	@$(BENCH) sweep $(RECIPE) $${TRACK:+--track "$$TRACK"} $${DATA:+--data "$$DATA"} $$ARGS

horizon: $(STAMP) ## tokens to a target from a text's statistics: ARGS="folder:wikitext2 --vocab 8192" [SUB= TRACK= DATA=]
	@$(BENCH) horizon $${ARGS:-stdlib --vocab 4096} $${SUB:+--recipe "$$SUB"} $${TRACK:+--track "$$TRACK"} $${DATA:+--data "$$DATA"}

compare: $(STAMP) ## what the records tell of two recipes: A= B= [TRACK= ARGS=--plot OUT]
	@$(BENCH) compare "$${A:?name two recipes: A= and B=}" "$${B:?name two recipes: A= and B=}" $${TRACK:+--track "$$TRACK"} $$ARGS

gate: $(STAMP) ## decide on a candidate by its records: A=baseline B=candidate [TRACK= ARGS=]
	@$(BENCH) gate "$${B:?name the candidate: B=}" --baseline "$${A:?name the baseline: A=}" $${TRACK:+--track "$$TRACK"} $$ARGS

arch: $(STAMP) ## shapes of a given size, by their split [ARGS="--params 38M --balanced"]
	@$(BENCH) arch $${ARGS:---params 38M --balanced}

replay: $(STAMP) ## execute drawn segments of a recorded run again: RECORD= [ARGS=]
	@$(BENCH) replay "$${RECORD:?name a record of leaderboard/records}" $${DATA:+--data "$$DATA"} $$ARGS

perf: $(STAMP) ## measure this machine's speed [ARGS=]
	@$(BENCH) perf $$ARGS

perf-levers: $(STAMP) ## what each lever costs a training step [ARGS=names]
	@$(BENCH) perf-levers $$ARGS

perf-core: $(STAMP) ## CORE beside its one-item-at-a-time oracle: CHECKPOINT= BUNDLE= [ARGS=--items 10]
	@$(PY) -m tests.evaluation.core.speed "$${CHECKPOINT:?name a checkpoint folder}" \
	    --bundle "$${BUNDLE:?name a folder with CORE in the layout of nanochat}" $$ARGS

data: $(STAMP) ## pin, fetch or prepare a data set: ARGS="fetch climbmix --shards 170" [DATA=]
	@$(BENCH) data $${ARGS:?what to do, as in ARGS="fetch climbmix --shards 170"} $${DATA:+--data "$$DATA"}

doctor: $(STAMP) ## what this machine lacks for a run [ARGS=--self-test]
	@$(BENCH) doctor $$ARGS

HAS_GPU = nvidia-smi -L >/dev/null 2>&1

image: ## build the container image [BASE_IMAGE= DEVICE=cuda|cpu WHEELS= TORCH_INDEX=]
	@set -eu; \
	device="$${DEVICE:-$$($(HAS_GPU) && echo cuda || echo cpu)}"; lock=requirements.cuda.lock; torch=; \
	if [ "$$device" = cpu ]; then \
	    lock=requirements.lock; torch="$$(sed -n 's/^torch = \["\(.*\)"\]$$/\1/p' pyproject.toml)+cpu"; \
	fi; \
	$$DOCKER image inspect "$$BASE_IMAGE" >/dev/null 2>&1 || $$DOCKER pull "$$BASE_IMAGE"; \
	digest="$$($$DOCKER image inspect --format \
	    '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}' "$$BASE_IMAGE")"; \
	echo "image: $$IMAGE for $$device on $$digest"; \
	$$DOCKER build $$DOCKER_BUILD_OPTIONS --build-arg BASE_IMAGE="$$BASE_IMAGE" --build-arg BASE_DIGEST="$$digest" \
	    --build-arg LOCK="$$lock" --build-arg TORCH="$$torch" --build-arg TORCH_INDEX="$$TORCH_INDEX" \
	    --build-arg WHEELS="$${WHEELS:-requirements.lock}" --tag "$$IMAGE" .

# The container writes this checkout's data, runs and leaderboard as whoever calls, and reads its recipes.
docker-bench: ## run a recipe in the container: SUB= [TRACK= SEED= ARGS=]
	@set -eu; : $(RECIPE); mkdir -p .data .runs; \
	digest="$$($$DOCKER image inspect --format '{{.Id}} on {{index .Config.Labels "speedrun.base"}}' "$$IMAGE")"; \
	gpus="$$($(HAS_GPU) && echo --gpus all --ipc=host --ulimit memlock=-1 || true)"; \
	exec $$DOCKER run --rm --read-only --user "$$(id -u):$$(id -g)" $$gpus $$DOCKER_RUN_OPTIONS \
	    --env SPEEDRUN_IMAGE_DIGEST="$$digest" \
	    --volume "$$PWD/.data:/speedrun-bench/.data" --volume "$$PWD/.runs:/speedrun-bench/.runs" \
	    --volume "$$PWD/leaderboard:/speedrun-bench/leaderboard" \
	    --volume "$$PWD/submissions:/speedrun-bench/submissions:ro" \
	    "$$IMAGE" launch $(RECIPE) $${TRACK:+--track "$$TRACK"} $${SEED:+--seed "$$SEED"} $$ARGS

test: $(STAMP) ## the tests, without the slow ones [ARGS=]
	@$(PYTEST) -m "not slow" $$ARGS

test-slow: $(STAMP) ## the slow tests [ARGS=]
	@$(PYTEST) -m slow $$ARGS

# atheris has builds for few Pythons and is in no lock: it comes into .venv when it is first asked for. Without one,
# the readers are fuzzed by hypothesis, without coverage.
FUZZ_SECONDS = 40
fuzz: $(STAMP) ## atheris over the readers of recipes, records and logs, two minutes in all [FUZZ_SECONDS=]
	@if $(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --quiet atheris==3.0.0; then \
	    for reader in recipes records logs; do \
	        $(PY) -m tests.fuzz.coverage_guided $$reader --seconds $(FUZZ_SECONDS) || exit 1; \
	    done; \
	else \
	    echo "atheris has no build for this Python: hypothesis instead"; \
	    $(PY) -m pytest -q -m slow tests/fuzz; \
	fi

test-container: $(STAMP) ## build the image twice and run it: where a container engine answers [BASE_IMAGE= WHEELS=]
	@$(PY) -m pytest -q -s tests/container/check_image.py $$ARGS

lint: $(STAMP) ## ruff and mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

# No index URL enters the lock: uv writes one only on request (--emit-index-url), so a lock serves any mirror.
# --universal: one lock for Linux, macOS and Python >= 3.11; --fork-strategy fewest: one version for all of them.
# requirements.cuda.lock is the container's: torch's CUDA build by hash, all else as in requirements.lock.
lock: ## resolve the two locks anew, with uv [ARGS=--upgrade]
	@set -e; uv=$$(command -v uv) || { \
	    tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	    python3 -m venv "$$tmp"; "$$tmp/bin/python" -m pip install --quiet uv; uv="$$tmp/bin/uv"; }; \
	"$$uv" pip compile pyproject.toml requirements.in --extra dev --universal --python-version 3.11 \
	    --fork-strategy fewest --generate-hashes --custom-compile-command "make lock" \
	    --quiet --output-file requirements.lock $$ARGS >/dev/null; \
	"$$uv" pip compile pyproject.toml requirements.in --extra torch --extra triton --universal \
	    --python-version 3.11 --fork-strategy fewest --generate-hashes --constraint requirements.lock \
	    --custom-compile-command "make lock" --quiet --output-file requirements.cuda.lock $$ARGS >/dev/null

clean: ## remove .venv and caches; data, runs and records stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A set-up option asks for a look even when the stamp is newer than the lock.
ifneq ($(TORCH_INDEX)$(TRITON)$(filter command,$(origin PYTHON)),)
.PHONY: $(STAMP)
endif

$(STAMP): requirements.lock pyproject.toml setup_env.py
	@for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        exec "$$python" setup_env.py --torch-index "$$TORCH_INDEX" $${TRITON:+--triton}; \
	    fi; \
	done; \
	echo "error: none of these is Python 3.11 or newer: $(PYTHON)" >&2; \
	echo "hint: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2
