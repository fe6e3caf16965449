"""A process that reads a table as its last act ends well: pq.read_table's threads aborted one process in seven."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from mmvp_ray import storage
from mmvp_ray.schema import NEAR_PAIRS
from mmvp_ray.store import Store, id_array, write_table

pytestmark = pytest.mark.integration

NUM_PROCESSES = 20


def test_reading_a_table_just_before_the_end(tmp_path):
    store = Store(str(tmp_path))
    ids = np.random.default_rng(0).integers(0, 256, size=(200_000, 16), dtype=np.uint8)
    table = pa.Table.from_arrays([id_array(ids), id_array(ids), pa.array(np.zeros(len(ids)))], schema=NEAR_PAIRS)
    uri = storage.join(store.root, "pairs.parquet")
    write_table(store, uri, table)
    program = f"from mmvp_ray.store import read_table\nassert read_table({uri!r}).num_rows == {len(ids)}"
    codes = [
        subprocess.run([sys.executable, "-c", program], capture_output=True).returncode for _ in range(NUM_PROCESSES)
    ]
    assert codes == [0] * NUM_PROCESSES
