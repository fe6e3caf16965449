"""Repeatable measurements: ratios against a baseline in the same run, never asserted in tests; __main__.py runs all."""

import os
import sys

# Where nobody may keep bytecode, whole commands measure Python's compiler, the peers' as ours.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
