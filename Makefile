# Everything below works on a fresh machine with Python, its headers and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-unit test-glance lint bench torture sanitize clean
.DEFAULT_GOAL = test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

demo: $(BIN)/python  ## install the command, store real images, compare with md5sum and sha512sum
	$(PIP) install '.[cli]'
	.ci/demo $(BIN)/fastfs

test: test-unit test-glance  ## install what the tests need and run them all

test-unit: $(BIN)/python  ## the library, the command and the driver; no Glance, some minutes
	$(PIP) install -e '.[test]'
	$(BIN)/python -m pytest $(TESTFLAGS)

# glance_store's own tests, then the real Glance, each in an environment of its own, since their requirements differ
# from ours and from one another's.  Glance 33 needs Python 3.11.  The extension is compiled once for both.
COMPAT = tests/compat
WHEELS = build/wheels
QUIET_PIP = -m pip --disable-pip-version-check --quiet
test-glance:  ## glance_store's own tests and the real Glance, with fastfs as the driver
	$(PYTHON) -m venv $(VENV)-store
	rm -rf $(WHEELS)
	$(VENV)-store/bin/python $(QUIET_PIP) wheel --no-deps --wheel-dir $(WHEELS) .
	$(VENV)-store/bin/python $(QUIET_PIP) install -r $(COMPAT)/requirements-store-tests.txt \
	    -c $(COMPAT)/constraints-store-tests.txt "$$(echo $(WHEELS)/*.whl)[glance]"
	$(VENV)-store/bin/python $(QUIET_PIP) install --force-reinstall --no-deps $(WHEELS)/*.whl
	$(VENV)-store/bin/python -I -m pytest $(COMPAT)/test_glance_store_suite.py
	$(PYTHON) -m venv $(VENV)-glance
	$(VENV)-glance/bin/python $(QUIET_PIP) install -r $(COMPAT)/glance/requirements.txt \
	    -c $(COMPAT)/glance/constraints.txt "$$(echo $(WHEELS)/*.whl)[cli,glance]"
	$(VENV)-glance/bin/python $(QUIET_PIP) install --force-reinstall --no-deps $(WHEELS)/*.whl
	$(VENV)-glance/bin/python -I -m pytest -n 2 --dist loadfile --durations=10 $(COMPAT)/glance

# What can be broken, and what holds then: docs/guarantees.md.  As root, with xfsprogs, btrfs-progs and clang, everything
# is run; what cannot be is told.  LONG=1: hours instead of minutes.
torture: $(BIN)/python  ## crash, error, power-cut, race and fuzz proofs, and a table of them
	$(PIP) install -e '.[test]'
	-$(PIP) install atheris
	$(BIN)/python tests/faults/torture.py $(if $(LONG),--long)

sanitize: $(BIN)/python  ## the tests on the extension built with AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer
	$(PIP) install -e '.[test]'
	PYTHON=$(CURDIR)/$(BIN)/python tests/faults/sanitize address
	PYTHON=$(CURDIR)/$(BIN)/python tests/faults/sanitize thread

lint: $(BIN)/python  ## ruff, mypy --strict, cython-lint, stubtest
	$(PIP) install -e '.[dev,bench]'
	PATH=$(CURDIR)/$(BIN):$$PATH .ci/lint

bench: $(BIN)/python  ## measure beside glance_store's own driver
	$(PIP) install -e '.[bench]'
	$(BIN)/python -m pytest bench $(BENCHFLAGS)

clean:
	rm -rf build dist *.egg-info fastfs/_native*.so ext/_native.c $(VENV) $(VENV)-*
