# make setup   what it takes, into .venv            make check   style, types, layers, unit tests (a minute)
# make demo    the whole thing on this machine      make test    every test, real S3 server and FUSE mount included
# make bench   the measurements, JSON and plots     make soak    the long suites in full
# make posix   POSIX, call by call and errno by errno
# make cluster the chart in a real Kubernetes, built here the first time (a quarter of an hour)
# make demo KEEP=1 leaves it up (make demo-stop ends it); DEMO_URI=s3://bucket/prefix shows your own data.
# All of them set up what is missing first, and do that only once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTEST := .venv/bin/pytest
## They wait more than they compute, so three at once on two cores; with four some are short of time.
THREE := -n 3 --max-worker-restart=1
UNIT := $(PYTEST) -q $(THREE) tests/unit
IN_PROCESS := tests/unit tests/services tests/model
## A file of tests stays in one process, which starts the servers that it needs for itself.
WHOLE := $(PYTEST) -q $(THREE) --dist loadfile

.PHONY: help setup setup-demo setup-servers demo demo-stop test posix cluster check unit proto lock dist bench soak clean

help:
	@sed -n 's/^# //p' Makefile

setup:
	@scripts/setup.sh

setup-demo:
	@scripts/setup.sh --demo

setup-servers:
	@scripts/setup.sh --servers

demo: setup-demo
	@.venv/bin/python -m bench.demo

demo-stop:
	@.venv/bin/python -m bench.demo stop

check: setup
	@scripts/check_source.sh
	@$(UNIT)

unit: setup
	@$(UNIT)

test: setup-servers
	@$(PYTEST) -q $(THREE) $(IN_PROCESS)
	@$(WHOLE) --durations=25 $(IN_PROCESS:%=--ignore=%)

posix: setup
	@ALLUXIO_LIKE_TEST_POSIX=all $(PYTEST) -q tests/posix

cluster: setup-servers
	@ALLUXIO_LIKE_TEST_CLUSTER=1 $(PYTEST) -q -x -s --timeout=7200 tests/kubernetes/real

soak: setup-servers
	@ALLUXIO_LIKE_TEST_SOAK=1 $(PYTEST) -q --durations=20 --timeout=3600

bench: setup
	@scripts/setup.sh --bench
	@.venv/bin/python -m bench

proto: setup
	@scripts/proto.sh

lock:
	@scripts/lock.sh

dist: setup
	@rm -rf dist && .venv/bin/python -m build --no-isolation -o dist . >/dev/null && ls dist

clean:
	@[ ! -e run/demo.json ] || .venv/bin/python -m bench.demo stop
	rm -rf .venv dist build run bench/out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
