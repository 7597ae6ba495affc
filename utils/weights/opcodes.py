"""A walk over a pickle's opcodes before any is executed.

Refused are opcodes that torch does not write, names that the reader refuses, memo indices that make the reader allot
gigabytes, and tuples nested so deep that their hash overflows the stack.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

# text forms of protocol 0 are fine; what reaches copyreg's registry, out-of-band buffers or old instances is not
FORBIDDEN_OPCODES = {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
MAX_NESTING = 100  # in real files: 3


class Nesting:
    """Follows the opcodes with, in place of each value, how deep tuples lie in it.

    Python takes the hash of a tuple of tuples by unbounded recursion: a few bytes of program would crash the process.
    """

    MARK = -1

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.memo: dict[Any, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, arg: Any) -> None:
        """LookupError where the stack or the memo has nothing to take."""
        name = opcode.name
        if name in PUTS or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else arg] = self.stack[-1]
            return
        depth = self.memo[arg] if name in GETS else 0
        before = opcode.stack_before
        if pickletools.markobject in before:
            while (top := self.stack.pop()) != self.MARK:
                depth = max(depth, top)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            depth = max(depth, self.stack.pop())
        depth += name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if depth > MAX_NESTING:
            raise pickle.UnpicklingError(f"more than {MAX_NESTING} tuples within each other")
        self.stack += [self.MARK if kind is pickletools.markobject else depth for kind in opcode.stack_after]


def check_program(stream: BinaryIO, answer: Callable[[str, str], object]) -> None:
    """Walk the opcodes up to STOP without running them.

    answer(module, name): raises where the reader would refuse that name. Errors: pickle.UnpicklingError, what
    `pickletools` raises for nonsense (ValueError, LookupError), and whatever `answer` raises.
    """
    puts, nesting = 0, Nesting()
    for opcode, arg, _ in pickletools.genops(stream):
        if opcode.name in FORBIDDEN_OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name}, which torch does not write")
        if opcode.name == "GLOBAL" and isinstance(arg, str):
            module, _, name = arg.partition(" ")
            answer(module, name)
        nesting.step(opcode, arg)
        # the reader allots its memo by the largest index: one short opcode could ask for gigabytes
        if opcode.name in PUTS:
            puts += 1
            if not isinstance(arg, int) or not 0 <= arg <= puts:
                raise pickle.UnpicklingError(f"memo index {arg} after {puts} entries")
