# The two commands of a checkout are `make run` and `make test`; `make help` tells their variables.
# All paths are relative, so that the folder may be called anything.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_WORKERS ?= auto

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

SERVE := $(if $(CONFIG),--config '$(CONFIG)') $(foreach node,$(NODES),--backend '$(node)')
COMMAND := $(if $(strip $(SERVE)),serve $(strip $(SERVE)),demo)
WHERE := $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)') $(if $(DATA_DIR),--data-dir '$(DATA_DIR)')

.PHONY: help run test venv clean FORCE
.DEFAULT_GOAL := help

help:
	@echo 'make run     run the proxy: in front of simulated servers, or of those in NODES and CONFIG'
	@echo '               NODES="http://gpu-a:8188 http://gpu-b:8188"   the ComfyUI servers'
	@echo '               CONFIG=my.yaml                                a configuration file'
	@echo '               HOST=0.0.0.0  PORT=9000  DATA_DIR=folder      where to listen, and to keep jobs'
	@echo 'make test    check formatting, style, types and imports, and run the tests'
	@echo '               TEST_WORKERS=4                                processes to run them in'
	@echo 'make venv    only install what `make test` needs, into $(VENV)'
	@echo 'make clean   remove $(VENV) and whatever the tools have left'
	@echo
	@echo 'PYTHON=python3.12 chooses the Python that $(VENV) is made with; 3.11 or newer.'

# `exec`: signals reach the proxy, not a shell in front of it.
run: $(VENV)/installed
	@exec $(BIN)/python -m comfyproxy $(COMMAND) $(WHERE)

# Everything runs, whatever fails; pytest comes last, and so does its summary.
test: $(VENV)/installed-tests
	@failed=; \
	for check in 'ruff format --check .' 'ruff check .' 'mypy' 'lint-imports'; do \
		echo "--- $$check"; \
		$(BIN)/$$check || failed="$$failed, $$check"; \
	done; \
	echo "--- pytest"; \
	test -z "$$failed" || echo "This will fail, whatever the tests say, because of: $${failed#, }"; \
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --maxprocesses 8 --dist loadgroup && test -z "$$failed"

venv: $(VENV)/installed-tests

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: setup.cfg pyproject.toml $(VENV)/made
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-tests: setup.cfg pyproject.toml $(VENV)/made
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(VENV)/installed $@

# An environment whose Python has gone (an upgrade of the system, a moved folder) is made anew.
ifneq ($(shell test -x $(BIN)/python && echo there),there)
$(VENV)/made: FORCE
endif

$(VENV)/made:
	@$(PYTHON) -c 'import sys' || { \
		echo "comfyproxy needs Python 3.11 or newer, and '$(PYTHON)' does not run: install it, or name another with PYTHON=..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "comfyproxy needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name another with PYTHON=..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@
