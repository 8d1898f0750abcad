# Two commands set everything up: `make demo` and `make test`. Each makes .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check bench format clean

demo: $(STAMP)
	$(BIN)/unitscope run configs/demo.toml
	@echo
	@echo "The 20 units that fire most on a photograph of a dalmatian (rarest first: tail_p is the share of pictures"
	@echo "that fire the unit at least as much):"
	$(BIN)/unitscope top-units stores/demo foolbox/data/imagenet_16_251.jpg -k 20
	$(BIN)/unitscope unit stores/demo blocks.5.2.bn1:3 --save stores/demo-unit.png
	@echo
	@echo "Look at stores/demo-unit.png, then: $(BIN)/unitscope sql stores/demo 'SELECT * FROM layers'"

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/results.py $(BENCH)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,polars,test]'
	touch $(STAMP)

clean:
	rm -rf stores .pytest_cache .mypy_cache .ruff_cache
