# make demo       one call, answered end to end, on this machine
# make test       lint, types and tests (a few minutes)
# make test-sip   SIP against sipp, baresip and kamailio (installed with apt when run by root)
# make test-long  what takes longer: soak, chaos, load
# make test-gpu   the engine's kernels, graphs and calls on this machine's NVIDIA card
#
# The tests need torch. PyPI's build for Linux carries CUDA (gigabytes); this one does not:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
#
# The virtual environment is made on first use and brought up to date when pyproject.toml or the
# pinned versions change; nothing is installed twice.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip -qq --disable-pip-version-check
PINS := pyproject.toml deploy/constraints.txt deploy/requirements-speech.txt

.PHONY: help demo test unit test-sip test-long test-gpu lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5

demo: $(VENV)/.demo
	$(VENV)/bin/callplex demo

# Tests mostly wait, for calls or for one core, so that lint and types cost little time beside them.
test: $(VENV)/.test
	@sh deploy/install_sip_peers.sh
	@$(MAKE) --no-print-directory -j2 lint unit

# Two at a time; those of one file follow each other, and share what it made. The order is that of tests/conftest.py.
unit: $(VENV)/.test
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

test-sip: $(VENV)/.test
	@sh deploy/install_sip_peers.sh
	$(PYTHON) -m pytest -m "sip and not long"

test-long: $(VENV)/.test
	$(PYTHON) -m pytest -m long

# Where there is no card the same tests run elsewhere, or are skipped.
test-gpu: $(VENV)/.test
	CALLPLEX_TEST_DEVICE=cuda $(PYTHON) -m pytest -m "not long" tests/model/kernels \
	  $(addprefix tests/model/test_,$(addsuffix .py,call_speech calls captured_step engine engine_start gpu_process \
	  history long_calls long_reads personaplex prompt_cache reprime resume_all shared_passes staging work_aside))

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# Made anew when the Python it was made from is gone: then this link leads nowhere.
$(PYTHON):
	@sh deploy/make_venv.sh $(VENV)

$(VENV)/.demo: $(PYTHON) $(PINS)
	@echo "Installing what the demo needs into $(VENV) (about 250 MB to download the first time) ..."
	@$(PIP) install -c deploy/constraints.txt setuptools
	@$(PIP) install -c deploy/constraints.txt --no-build-isolation -e '.[rehearsal]'
	@$(PIP) install --no-deps --require-hashes -r deploy/requirements-speech.txt
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing what the tests need into $(VENV) ..."
	@$(PIP) install -c deploy/constraints.txt --no-build-isolation -e '.[rehearsal,model,opus,s3,dev]'
	@touch $@
