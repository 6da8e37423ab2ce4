# Everything a fresh machine needs: `make run` and `make test`. The rest is for those who work on it.
#
#   make run   [MOUNT=./Everfold] [DATA=./.everfold] [PORT=5000]   the whole system, until Ctrl-C
#   make test  [ARGS="tests/t0_*.py -x"] [JOBS=2]                  the test suite
#   make check                                                     format, lint, types
#   make bench [ARGS="--quick"]                                    all workloads, beside local disk
#   make bench-scale                                               what an operation costs up to 2 million inodes
#   make bench-live                                                how soon Socket.IO clients hear of a save
#   make bench-http [ARGS="--quick"]                               the HTTP API, alone and beside a folder at work
#   make fuzz [EXAMPLES=100]                                       schemathesis against the HTTP API
#   make soak                                                      the long tests
#   make clean                                                     remove .venv and caches, never data

PYTHON ?= python3
MOUNT ?= ./Everfold
DATA ?= ./.everfold
PORT ?= 5000
ARGS ?=
EXAMPLES ?= 100
JOBS ?= 2

PY := .venv/bin/python
READY := .venv/.ready

.PHONY: run test check bench bench-scale bench-live bench-http fuzz soak native clean
.DELETE_ON_ERROR:

run: native
	@exec $(PY) -m tools up --data "$(DATA)" --mount "$(MOUNT)" --port $(PORT)

test: native
	$(PY) -m pytest -m "not soak" -n $(JOBS) --dist loadfile $(ARGS)

check: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: native
	$(PY) -m tools.bench $(ARGS)

bench-scale: native
	$(PY) -m tools.benchscale $(ARGS)

bench-live: native
	$(PY) -m tools.livebench $(ARGS)

bench-http: native
	$(PY) -m tools.benchhttp $(ARGS)

fuzz: native
	FUZZ_EXAMPLES=$(EXAMPLES) $(PY) -m pytest -s tests/t4_fuzz.py

soak: native
	$(PY) -m pytest -m soak $(ARGS)

# What a mount spends its time in, by a compiler where there is one (docs/adr/0009).
native: $(READY)
	-@$(PY) -m tools.compile

# Made again only when what is to be installed changes.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Everfold needs Python 3.10 or later; choose one with PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "This Python cannot make a venv: apt install python3-venv" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (once)..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --config-settings editable_mode=compat -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
