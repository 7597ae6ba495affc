"""Damaged files and odd command lines against every reader and program; see tests/fuzz/run.py."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import again, campaign, chosen
from tests.fuzz.targets import stock


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="kinds (default: all); with a number behind one: that try alone")
    parser.add_argument("--tries", type=int, default=2000, help="of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of each kind's first try")
    args = parser.parse_args()
    numbers = [int(word) for word in args.kinds if word.isdecimal()]
    kinds = chosen([word for word in args.kinds if not word.isdecimal()])
    with tempfile.TemporaryDirectory(prefix="thaw_fuzz_") as folder:
        ready = stock(Path(folder))
        if numbers:
            return max(again(ready, kinds[0], number) for number in numbers)
        return int(bool(campaign(ready, kinds, args.tries, args.first)))


if __name__ == "__main__":
    sys.exit(main())
