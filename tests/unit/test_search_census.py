"""A census in memory, and one through temporary files, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.search import census as census_module
from mmvp_ray.search import passes
from mmvp_ray.search.blocks import cut_blocks, kept_rows
from mmvp_ray.search.census import take_census
from mmvp_ray.store import PieceRef, Store, id_keys, key_bytes
from tests.shuffled import Shuffled, pass_by_tasks

NAMES = np.random.default_rng(0).integers(0, 256, (300, 16), dtype=np.uint8)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    num_names=st.integers(1, 300),
    num_earlier=st.integers(0, 12),
    bucket_bytes=st.sampled_from([48, 700, 1 << 20]),
)
def test_the_first_row_of_each_id_counts(
    seed: int, sizes: list[int], num_names: int, num_earlier: int, bucket_bytes: int
) -> None:
    rng = np.random.default_rng(seed)
    pieces = [PieceRef("c", f"{number:02d}") for number in range(len(sizes))]
    rows = {piece: NAMES[rng.integers(0, num_names, size)] for piece, size in zip(pieces, sizes, strict=True)}
    without, late = (np.unique(id_keys(NAMES[rng.integers(0, 300, 30)])) for _ in range(2))
    earlier = pieces[:num_earlier]

    def read_ids(uri: str) -> np.ndarray:
        return rows[PieceRef("c", uri.rsplit("/", 1)[1].removesuffix(".parquet"))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "read_ids", read_ids)
        pass_by_tasks(patch, 3, few=4)
        session = Shuffled(seed)
        patch.setattr(census_module, "DRAW_IMAGES", 20)
        found = take_census(
            Store("/none"),
            "e",
            pieces[::-1],
            session=session,
            earlier=earlier,
            without=without,
            late=late,
            bucket_bytes=bucket_bytes,
        )
    assert session.num_tasks == (-(-len(pieces) // 3) if len(pieces) > 4 else 0)
    seen, out = set(key_bytes(without)), {"all": [], "old": [], "new": []}
    for number, piece in enumerate(pieces):
        for row, name in enumerate(key_bytes(id_keys(rows[piece]))):
            if name not in seen:
                seen.add(name)
                is_new = number >= num_earlier or name in key_bytes(late)
                for which in ("all", "new" if is_new else "old"):
                    out[which].append((piece, row))
    assert (found.num_images, found.num_old) == (len(out["all"]), len(out["old"]))
    assert found.images_of_pieces().tolist() == [sum(at == piece for at, _ in out["all"]) for piece in pieces]
    for which, expected in out.items():
        blocks = cut_blocks(found, 30, which)
        told = [
            (piece, row)
            for block in blocks
            for piece, kept in zip(block.pieces, block.kept, strict=True)
            for row in (range(len(rows[piece])) if kept is None else kept_rows(kept).tolist())
        ]
        assert told == expected
        assert sum(block.num_rows for block in blocks) == len(expected)
    drawn = key_bytes(id_keys(found.draw.ids_S16))
    assert len(drawn) == min(20, len(out["all"]))
    places = [(pieces[at], name) for at, name in zip(found.draw.piece_S, drawn, strict=True)]
    assert set(places) <= {(piece, rows[piece][row].tobytes()) for piece, row in out["all"]}
    words = np.frombuffer(b"".join({rows[piece][row].tobytes() for piece, row in out["all"]}), "<u8")[::2]
    order = np.sort(words * np.uint64(census_module._MIXER))[:20]
    assert (np.frombuffer(b"".join(drawn), "<u8")[::2] * np.uint64(census_module._MIXER)).tolist() == order.tolist()
