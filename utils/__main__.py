"""The front door of the tools: `python -m utils` lists them, `python -m utils NAME ...` runs one."""

import importlib

from utils.config.tools import TOOLS, listing
from utils.system.errors import UserError
from utils.system.processes.program import run_main


def main(argv: list[str]) -> None:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(listing("python -m utils", "TOOL", {name: program.about for name, (_, program) in TOOLS.items()}))
        return
    if name not in TOOLS:
        raise UserError(f"there is no tool {name!r:.100}; there are: {', '.join(TOOLS)}")
    module, program = TOOLS[name]
    program.answer_help(argv[1:])  # before torch, whose import takes longer than the answer
    importlib.import_module(module).main(argv[1:])


if __name__ == "__main__":
    run_main(main)
