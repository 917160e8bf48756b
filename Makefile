# make study: the handwritten-digits study, end to end.   make test: the tests.   make faults: what is killed, once each.   Each sets up .venv.
# make soak: what takes hours, random kills for UVAR_SOAK_SEC (3600) seconds among it; UVAR_SOAK_SEED (0) draws other moments.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: study test lint faults soak
study: $(READY)
	$(PY) -m uvar_tune.sweep search_spaces/digits.yaml

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not faults"

lint: $(READY)
	$(PY) -m ruff check uvar_tune tests

faults: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -v tests/faults -m "not slow"
	OMP_NUM_THREADS=1 $(PY) -m pytest -v tests/ray_backend -m "faults and not slow"

soak: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -v -m slow

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "setting up $(VENV): about 6 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	@touch $@
