"""Pair accuracy of a VLMEvalKit run on a benchmark that mmvp-ray exported: python score_pairs.py RESULT_FILE.

VLMEvalKit reports pairs for its own MMVP alone; for any other benchmark it reports single questions. RESULT_FILE is the table with the
columns hit and log that it writes beside the predictions (..._result.xlsx, .tsv, .csv or .json). Options that it drew at random because no
answer could be read count as wrong here. Needs pandas, which VLMEvalKit brings along.
"""

from __future__ import annotations

import json
import sys
from typing import Any

RANDOM_DRAW = "randomly generate one"


def pair_scores(table: Any) -> dict[str, float]:
    """Pair and question accuracy of a pandas table with the columns pair_id, num_items, hit and log."""
    missing = [name for name in ("pair_id", "num_items", "hit", "log") if name not in table]
    if missing:
        raise SystemExit(
            f"expected a result table with the columns pair_id, num_items, hit and log, found no {', '.join(missing)}"
        )
    drawn = table["log"].astype(str).str.contains(RANDOM_DRAW, regex=False)
    hit = (table["hit"].astype(int) == 1) & ~drawn
    pairs = table.assign(_hit=hit).groupby("pair_id")
    whole = pairs.size() == pairs["num_items"].first()
    both = pairs["_hit"].all()[whole]
    return {
        "pair_accuracy": float(both.mean()),
        "num_pairs": float(len(both)),
        "question_accuracy": float(hit.mean()),
        "num_questions": float(len(table)),
        "num_random_draws": float(drawn.sum()),
        "num_broken_pairs": float((~whole).sum()),
    }


def main(path: str) -> None:
    """Print the scores of a result file."""
    import pandas as pd  # type: ignore[import-untyped]

    readers = {
        "xlsx": pd.read_excel,
        "csv": pd.read_csv,
        "tsv": lambda file: pd.read_csv(file, sep="\t"),
        "json": pd.read_json,
    }
    suffix = path.rsplit(".", 1)[-1]
    if suffix not in readers:
        raise SystemExit(f"expected a file that ends in {', '.join(readers)}, found {path}")
    print(json.dumps(pair_scores(readers[suffix](path)), indent=1))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
