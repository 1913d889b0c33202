# make demo        set everything up and run the main job on the embedded entry
# make test        set everything up and pass lint, types, import layers and tests
# make demo-short  the same job in a few minutes: fewer particles, less training
# make test-long   the tests marked slow
# make test-peers  comparisons with the public cesped package, which gets a virtual environment of its own
#
# VENV=/path takes an environment that has every dependency already; nothing is installed into it then.
# PEERS_VENV=/path does the same for the one that has cesped.

PYTHON ?= python3
OUTPUT ?= demo-output
APT_GET ?= apt-get
PEERS_VENV ?= .venv-peers

ifeq ($(origin VENV),undefined)
VENV := .venv
INSTALLED := .venv/.installed
else
INSTALLED :=
endif

# The service's import name is not its folder's: the link shows mypy and a lent environment this checkout's code.
LINKS := build/import
BIN := $(abspath $(VENV))/bin
RUN := PYTHONPATH="$(CURDIR):$(CURDIR)/$(LINKS)" MYPYPATH="$(CURDIR)/$(LINKS)" $(BIN)/python -m

.PHONY: demo demo-short test test-long test-peers lint types layers unit relion fresh clean
.DEFAULT_GOAL := test

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv" >&2; exit 1; }
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(LINKS)/cesped_stream_service:
	mkdir -p $(LINKS)
	ln -sfn "$(CURDIR)/service" $@

ready: $(INSTALLED) $(LINKS)/cesped_stream_service
.PHONY: ready

demo: ready fresh
	$(RUN) cesped_stream_service demo --settings configs/demo.toml --output "$(OUTPUT)"

demo-short: ready fresh
	$(RUN) cesped_stream_service demo --settings configs/demo-short.toml --output "$(OUTPUT)"

# A former run's output goes; a folder that was named by OUTPUT=.. is never removed, a used one is refused.
fresh:
ifeq ($(OUTPUT),demo-output)
	rm -rf demo-output
endif

lint: ready
	$(RUN) ruff check cesped_stream service tests
	$(RUN) ruff format --check cesped_stream service tests

types: ready
	$(RUN) mypy

layers: ready
	PYTHONPATH="$(CURDIR):$(CURDIR)/$(LINKS)" $(BIN)/lint-imports

# RELION is the tests' oracle. Without it the tests that need it are skipped, and say so.
relion:
	@command -v relion_reconstruct >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v $(APT_GET) >/dev/null; then \
	    $(APT_GET) update -qq && DEBIAN_FRONTEND=noninteractive $(APT_GET) install -y -qq relion >/dev/null \
	      || echo "RELION could not be installed: its tests are skipped" >&2; \
	  else echo "RELION is not on PATH: its tests are skipped" >&2; fi; }

unit: ready relion
	$(RUN) pytest -m "not slow and not peers"

test: lint types layers unit

test-long: ready relion
	$(RUN) pytest -m "slow and not peers"

# torch and torchvision come first and from one build; cesped would else take what it finds.
$(PEERS_VENV)/bin/python:
	$(PYTHON) -m venv "$(PEERS_VENV)"
	"$(PEERS_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check torch torchvision
	"$(PEERS_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check cesped==25.12.0

test-peers: ready $(PEERS_VENV)/bin/python
	PEERS_PYTHON="$(abspath $(PEERS_VENV))/bin/python" $(RUN) pytest -m peers tests/peers

clean:
	rm -rf .venv .venv-peers build demo-output
