.PHONY: setup check test slow fuzz lint types demo
N ?= 2000
setup:
	bash scripts/setup.sh dev
check: lint types  ## quick: lint, types, architecture
	.venv/bin/python -m pytest tests/test_architecture.py tests/test_seams.py
test:
	bash scripts/test.sh
slow:
	bash scripts/test.sh -m slow
fuzz:  ## damaged files and odd command lines; N=10000 tries, FIRST=200 other ones
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.fuzz --tries $(N) --first $(or $(FIRST),0)
lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
types:
	.venv/bin/mypy
demo:
	bash scripts/demo.sh
