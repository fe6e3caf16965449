"""Workers that import the tests' conftest keep the S3 server of the process that started them; another run of tests has its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import REPOSITORY, S3_PORT

SAYS = "import os, tests.conftest as c; print(c.S3_PORT, os.environ['AWS_ENDPOINT_URL'])"


def said(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split()


def test_a_worker_keeps_the_port_and_the_address_that_it_knows_the_store_by() -> None:
    assert said() == [str(S3_PORT), os.environ["AWS_ENDPOINT_URL"]]
    assert said(AWS_ENDPOINT_URL="http://127.0.0.1:9") == [str(S3_PORT), "http://127.0.0.1:9"]


def test_another_process_of_tests_has_a_server_of_its_own() -> None:
    port, address = said(PYTEST_XDIST_WORKER="gw99")
    assert int(port) != S3_PORT and address == f"http://127.0.0.1:{port}"
