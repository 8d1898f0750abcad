# Two commands set everything up: `make demo` and `make test`. Each makes .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow test-oldest torture coverage check bench format clean

demo: $(STAMP)
	$(BIN)/unitscope run configs/demo.toml
	@echo
	@echo "The 20 units that fire most on a photograph of a dalmatian (rarest first: tail_p is the share of pictures"
	@echo "that fire the unit at least as much):"
	$(BIN)/unitscope top-units stores/demo foolbox/data/imagenet_16_251.jpg -k 20
	$(BIN)/unitscope unit stores/demo blocks.5.2.bn1:3 --save stores/demo-unit.png
	@echo
	@echo "Look at stores/demo-unit.png, or click through the network: $(BIN)/unitscope serve stores/demo --open"
	@echo "(your own pictures: $(BIN)/unitscope explore torchvision:resnet18 FOLDER --open)"


test: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

# What `make test` leaves out, because it takes long and other tests cover most of it.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 -m slow

# The core tests on the lowest versions that pyproject.toml allows, in an environment of their own (8 GB).
# Without clusters, and without what is compared with other programs. OLDEST: fewer files, or options of pytest.
# Warnings are no errors here: old releases warn about each other.
OLDEST ?= tests/compat tests/graph tests/models tests/data tests/scan tests/store tests/query
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -q -n 2 --dist loadfile -W default $(OLDEST)

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	echo '*' > .venv-oldest/.gitignore
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[demo,polars,test]'
	touch $@

# Kills, failing system calls, races, full disks and flipped bits, at every place of a small run: a table. 20 minutes.
torture: $(STAMP)
	PYTHONPATH=.:tests $(BIN)/python -m support.torture

# Branch coverage of the whole suite. What guards a store must be covered completely.
GUARDS := store/publish.py,store/commits.py,store/containment.py,store/intents.py,store/housekeeping.py,store/intact.py,store/checked_file.py,query/sql/*,query/sql_child.py
coverage: $(STAMP)
	rm -rf .coverage && mkdir .coverage
	$(BIN)/python -m coverage run -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --fail-under=90
	$(BIN)/python -m coverage report --show-missing --include='$(GUARDS)' --fail-under=100

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# BENCH: names of programs in benchmarks/, all if empty. QUICK=1: check that they run; RESULTS.md stays as it is.
bench: $(STAMP)
	$(BIN)/python benchmarks/results.py $(if $(QUICK),--quick) $(BENCH)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,polars,test,web]'
	touch $(STAMP)

clean:
	rm -rf stores .pytest_cache .mypy_cache .ruff_cache
