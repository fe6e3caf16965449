#!/usr/bin/env python
"""Serve a Mixture-of-Features model behind OpenAI's chat completions, on Ray Serve.

  python jobs/serve_mof.py --model runs/mof/final --port 8000
  python jobs/evaluate.py mllm --benchmark MMVP --model ours:final --base-url http://127.0.0.1:8000/v1 --out runs/served
  curl http://127.0.0.1:8000/v1/models

POST /v1/chat/completions (texts and images), GET /v1/models, GET /healthz. It listens on this machine alone unless --host says otherwise,
and takes requests of everybody who reaches it unless --api-key-file names keys. SIGTERM lets running requests end. docs/serve_mof.md.
Flags override --config FILE.yaml, which overrides the defaults shown here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository need not be installed where `ray job submit --working-dir .` unpacks it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmvp_ray import job
from mmvp_ray.mof.serving.config import ServeConfig


def main() -> int:
    """Parse, serve."""
    config = job.parse(ServeConfig, sys.argv[1:], description=__doc__ or "")
    config.check()

    from mmvp_ray.mof.serving.application import CLOSING_SECONDS, run_server

    with job.may_stop_for(config.stop_seconds + CLOSING_SECONDS):
        run_server(config, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    job.run(main)
