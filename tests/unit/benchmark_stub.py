"""A benchmark of no seconds, for the tests of what runs benchmarks: it measures one number, and fails as it is told."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--fail", choices=["before", "after"])
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    print("begins", flush=True)
    if args.hang:
        time.sleep(600)
    if args.fail == "before":
        sys.exit("expected a number, found none")
    args.json.write_text(json.dumps({"machine": {}, "number": args.number, "rounds": args.rounds}))
    if args.fail == "after":
        print(f"{Path(__file__).resolve()} found a number that is wrong\n")
        sys.exit(3)


if __name__ == "__main__":
    main()
