.PHONY: setup check test slow lint types demo
setup:
	bash scripts/setup.sh dev
check: lint types  ## quick: lint, types, architecture
	.venv/bin/python -m pytest tests/test_architecture.py tests/test_seams.py
test:
	bash scripts/test.sh
slow:
	bash scripts/test.sh -m slow
lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
types:
	.venv/bin/mypy
demo:
	bash scripts/demo.sh
