"""What is kept of a benchmark that ran, and where: benchmarks/results/NAME.json, one file each, small and sorted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.section import Figures, rounded

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One benchmark's last run.

    Attributes:
        name: Of the benchmark in the catalogue.
        command: As anybody types it; of this machine it has no paths.
        date: When it began, or where it ran elsewhere when its file was written: YYYY-MM-DD HH:MM in UTC.
        seconds: From the start of its process to the end; None where it ran elsewhere and did not say.
        machine: What benchmarks.contest.machine() said when it began, load included; "gpu" where it used one.
        is_quick: Measured at small sizes, to see that all runs.
        failed: The last line of what it said if it failed after it had measured; empty otherwise.
        figures: What the section keeps of its JSON.
    """

    name: str
    command: str
    date: str
    seconds: float | None
    machine: dict[str, Any]
    is_quick: bool
    failed: str
    figures: Figures

    @property
    def gpu(self) -> str:
        """The name of the GPU that it used; empty if none."""
        return str(self.machine.get("gpu") or "")


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep an outcome in place of an earlier one of the same benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(asdict(outcome)), indent=1, sort_keys=True) + "\n"
    (folder / f"{outcome.name}.json").write_text(text, encoding="utf-8")


def read_outcomes(folder: Path) -> dict[str, Outcome]:
    """Every kept outcome by its benchmark's name.

    Raises:
        SystemExit: a file is not one of ours.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = Outcome(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise SystemExit(
                f"expected what `python -m benchmarks` keeps, found {error} in {path}; remove the file and run "
                f"{path.stem} again"
            ) from error
    return found
