"""A process that reads a table as its last act ends well: pq.read_table's threads aborted one process in seven to fifteen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmvp_ray import storage
from mmvp_ray.schema import NEAR_PAIRS
from mmvp_ray.store import Store, id_array, write_table

pytestmark = pytest.mark.integration

NUM_PROCESSES = 40
# What is imported is imported once: each process is a fork that reads, and ends as a script does that has come to its end.
PROGRAM = f"""
import os, sys
from mmvp_ray.store import read_table
codes = []
while len(codes) < {NUM_PROCESSES}:
    pid = os.fork()
    if pid == 0:
        break
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
else:
    print(codes)
    sys.exit()
assert read_table(sys.argv[1]).num_rows == int(sys.argv[2])
"""


def test_reading_a_table_just_before_the_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ids = np.random.default_rng(0).integers(0, 256, size=(200_000, 16), dtype=np.uint8)
    table = pa.Table.from_arrays([id_array(ids), id_array(ids), pa.array(np.zeros(len(ids)))], schema=NEAR_PAIRS)
    uri = storage.join(store.root, "pairs.parquet")
    write_table(store, uri, table)
    ended = subprocess.run([sys.executable, "-c", PROGRAM, uri, str(len(ids))], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"{[0] * NUM_PROCESSES}\n"), ended.stderr
