# Every target makes .venv first, so each one works as the first command on a bare clone.
PYTHON ?= python3

.PHONY: setup demo test quality

setup: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup
	PATH="$(CURDIR)/.venv/bin:$$PATH" bash runs/demo.sh

test: setup
	.venv/bin/python -m pytest --numprocesses 2 --dist loadgroup

quality: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR slurm/*.slurm runs/*.sh benchmarks/*.sh .ci/run
