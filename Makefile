# Two commands for a fresh machine: `make search` and `make test`. Each installs what is missing.
#
# `make test` leaves out tests marked slow, but trains, resumes, searches, reports, converts and
# generates really once each. `make test-slow` runs those that are marked: every scheme on every
# task, clusters, databases, kills; CI runs both. `make test-all` also runs those marked long.
# `make lint` also builds the docs.
#
# torch comes first and pinned: fairseq compiles against it without build isolation, and with it
# installed no other package pulls another build. TORCH_ARGS says where from, for machines whose
# package index offers several builds (`make search TORCH_ARGS="--index-url URL"`).
#
# -g0 leaves out what only debuggers read of fairseq's extensions, half of the time to compile them.
#
# --no-compile leaves Python's byte code to compileall, which takes all cores; like pip it skips what
# is not of this Python. Tests of packages are left out.
#
# torchaudio, which fairseq asks for and imports for speech only, goes again where it does not fit
# torch: transformers imports whatever torchaudio it finds, and could not be imported.

PYTHON ?= python3
STUDY ?= demo
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt
TORCH_ARGS ?=

PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

.PHONY: search test test-slow test-all lint docs install clean

search: install
	$(VENV)/bin/nas-attn search $(STUDY)

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m "slow and not long"

test-all: install
	$(PYTEST)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(MAKE) docs

# The site, in site/. A link or anchor that leads nowhere is an error, but not with --quiet, which
# hides warnings from --strict. Material's notice of the next mkdocs is not about us.
docs: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

install: $(VENV)/installed

$(VENV)/installed: Makefile pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch"
	@$(PIP) $(TORCH_ARGS) torch
	@$(PIP) setuptools wheel cython numpy ninja hatchling editables
	@echo "compiling fairseq (a few minutes)"
	@CFLAGS="-g0 $$CFLAGS" $(PIP) --no-build-isolation fairseq-fixed
	@echo "installing the rest"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(VENV)/bin/python -m compileall -q -j 0 -x '/tests/' $(VENV)/lib > /dev/null || true
	@$(VENV)/bin/python -c "import torchaudio" 2>/dev/null || \
		$(VENV)/bin/python -m pip uninstall --disable-pip-version-check -q -y torchaudio
	@touch $@
	@echo "installed; next, for the nas-attn command in this shell: . $(VENV)/bin/activate"

clean:
	rm -rf $(VENV) runs build dist site
