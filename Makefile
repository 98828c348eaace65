# Thin on purpose: every target is one call of `mixos`. `make bootstrap` runs by itself when something is missing.

C_SOURCES := $(wildcard daemon/native/*.[ch] daemon/native/*/*.[ch] tests/harness/*.[ch])
MIXOS := .venv/bin/mixos
PYTEST := .venv/bin/python -m pytest
# Files of tests run side by side, each file in one process; more than three would mean more than three guests.
PARALLEL := --numprocesses auto --maxprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: image run test test-long fuzz unit boot bench lint format release bootstrap clean distclean

image: bootstrap
	$(MIXOS) build

run: bootstrap
	$(MIXOS) build
	$(MIXOS) run

test: bootstrap
	$(MIXOS) build
	$(PYTEST) $(PARALLEL)

test-long: fuzz
	$(MIXOS) build
	MIXOS_WHOLE=1 $(PYTEST) $(PARALLEL) --timeout 43200 tests/unit/test_update_cuts.py tests/unit/test_update_bits.py \
		tests/unit/test_update_remote.py tests/unit/test_slots_repair.py tests/unit/test_slots_bootfiles.py \
		tests/boot/test_faults.py tests/boot/test_taking.py

fuzz: bootstrap
	.venv/bin/python -m tests.fuzzing 1000000
	.venv/bin/python -m tests.fatfuzz 100000

unit: bootstrap
	$(PYTEST) $(PARALLEL) tests/unit

boot: bootstrap
	$(MIXOS) build
	$(PYTEST) $(PARALLEL) tests/boot

bench: bootstrap
	$(MIXOS) build
	.venv/bin/python -m tests.bench

lint: bootstrap
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/clang-format --dry-run --Werror $(C_SOURCES)

format: bootstrap
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(C_SOURCES)

release: bootstrap
	$(MIXOS) build --kernel-source pinned

bootstrap:
	@ci/bootstrap

clean:
	rm -rf out

distclean: clean
	rm -rf .venv
