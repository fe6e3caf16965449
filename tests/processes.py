"""Processes that tests start and look for: jobs that stop patiently, and the descendants of a process by their titles."""

from __future__ import annotations

import contextlib

import psutil

PATIENT = """
import runpy, sys
from mmvp_ray import job
job.STOP_SECONDS = 250.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""For `python -c`, with a job's path and flags behind it: it stops as orderly where Ray takes longer to end than a job waits for it."""


def descendants(title: str) -> list[psutil.Process]:
    """Living processes whose command line holds `title` and that descend from this one: a Ray that another test runs beside has its own."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # One that has ended and was not waited for has no title, and is no reason to overlook the others.
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found
