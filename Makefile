# make study    a study on handwritten digits, end to end          make test    the tests
# make lint     ruff, layers, file sizes, retired words            make faults  every fault once, in a real study
# make soak     tests of hours: random kills for UVAR_SOAK_SEC (3600) seconds, moments by UVAR_SOAK_SEED (0)
# Each command sets up .venv first if it is missing.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: study test lint faults soak
study: $(READY)
	$(PY) -m uvar_tune sweep search_spaces/digits.yaml

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not faults"

lint: $(READY)
	$(PY) -m ruff check uvar_tune tests
	$(PY) -m ruff format --check uvar_tune tests
	$(PY) -m pytest tests/test_architecture.py tests/test_vocabulary.py

faults: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -v tests/faults -m "not slow"
	OMP_NUM_THREADS=1 $(PY) -m pytest -v tests/ray_backend -m "faults and not slow"

soak: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -v -m slow

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "setting up $(VENV): about 7 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	@touch $@
