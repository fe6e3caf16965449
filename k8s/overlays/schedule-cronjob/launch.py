"""Make a RayJob out of a suspended one, named after and owned by this pod's Job; wait for its end, and say how it ended.

Runs in the CronJob's pod with nothing but the standard library. Exit codes: 0 the run succeeded, 3 it failed (no use to try again),
1 anything else (the Job starts another pod, which finds the run that is there).
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

RUN_FAILED = 3
POLL_SECONDS = 30.0
REQUEST_SECONDS = 30.0
MAX_FAILED_POLLS = 20
"""Ten minutes in which the Kubernetes API may be away, as while its control plane is upgraded."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

log = logging.getLogger("launch")


class Api:
    """The RayJobs of one namespace, through the Kubernetes API.

    Args:
        url: Of the API, such as https://10.0.0.1:443.
        namespace: Where the RayJobs are.
        account: Folder of the pod's service account: token, and ca.crt.
    """

    def __init__(self, url: str, namespace: str, account: Path = ACCOUNT) -> None:
        self._url = f"{url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._account = account
        authority = account / "ca.crt"
        self._tls = ssl.create_default_context(cafile=str(authority)) if url.startswith("https://") else None

    def get(self, name: str) -> dict[str, Any]:
        """The RayJob of that name."""
        return self._ask("GET", f"{self._url}/{name}", None)

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Make a RayJob; urllib.error.HTTPError with code 409 if there is one of its name."""
        return self._ask("POST", self._url, job)

    def _ask(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        # Read each time: tokens are renewed every hour.
        headers = {"Authorization": f"Bearer {(self._account / 'token').read_text().strip()}"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310  (the pod's own API server)
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS, context=self._tls) as answer:  # noqa: S310
            return dict(json.load(answer))


def run_of(template: dict[str, Any], *, job_name: str, job_uid: str) -> dict[str, Any]:
    """The RayJob to make: the template's spec, no longer suspended, named after and owned by the Job."""
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": job_name,
            "labels": template["metadata"].get("labels", {}),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job_uid}],
        },
        "spec": {**template["spec"], "suspend": False},
    }


def launch(api: Api, *, template: str, job_name: str, job_uid: str) -> None:
    """Make the run, unless an earlier pod of this Job has done so."""
    try:
        api.create(run_of(api.get(template), job_name=job_name, job_uid=job_uid))
        log.info("made RayJob %s out of %s", job_name, template)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        log.info("RayJob %s is there already", job_name)


def follow(api: Api, name: str, *, poll_seconds: float = POLL_SECONDS) -> int:
    """Wait for the end of the run; 0 if it succeeded, else RUN_FAILED."""
    num_failed = 0
    last = ""
    while True:
        try:
            status = api.get(name).get("status") or {}
            num_failed = 0
        except OSError as error:
            num_failed += 1
            if num_failed >= MAX_FAILED_POLLS or getattr(error, "code", 0) in (401, 403, 404):
                raise
            log.warning("the Kubernetes API did not answer: %s", error)
            time.sleep(poll_seconds)
            continue
        state = str(status.get("jobDeploymentStatus") or "New")
        if state != last:
            log.info("RayJob %s: %s %s", name, state, status.get("message") or "")
            last = state
        if state == "Complete":
            return 0 if status.get("jobStatus") == "SUCCEEDED" else RUN_FAILED
        if state in ("Failed", "ValidationFailed"):
            return RUN_FAILED
        time.sleep(poll_seconds)


def main() -> int:
    """Launch and follow, as the pod's environment says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    api = Api(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", os.environ["NAMESPACE"])
    name = os.environ["JOB_NAME"]
    launch(api, template=os.environ["TEMPLATE"], job_name=name, job_uid=os.environ["JOB_UID"])
    return follow(api, name)


if __name__ == "__main__":
    sys.exit(main())
