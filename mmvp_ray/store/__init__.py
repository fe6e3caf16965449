"""The embedding store: whole-piece commits, resume by marker, readers that open only what markers name."""

from __future__ import annotations

from mmvp_ray.store.layout import (
    DONE,
    FileEntry,
    PieceRef,
    Store,
    done_names,
    open_store,
    read_marker,
    write_marker,
)
from mmvp_ray.store.lease import Lease
from mmvp_ray.store.lease import hold as hold_lease
from mmvp_ray.store.pieces import (
    ShardState,
    commit_embeddings,
    commit_images,
    committed_pieces,
    shard_states,
)
from mmvp_ray.store.tables import (
    among,
    embeddings_table,
    id_array,
    id_keys,
    id_matrix,
    key_array,
    key_bytes,
    key_matrix,
    read_embeddings,
    read_table,
    write_table,
    write_whole,
)
from mmvp_ray.store.takedown import TakedownResult, apply_takedown
from mmvp_ray.store.takedown_record import Refusals, is_applied, read_record, read_takedown_list, refusals

__all__ = [
    "DONE",
    "FileEntry",
    "Lease",
    "PieceRef",
    "Refusals",
    "ShardState",
    "Store",
    "TakedownResult",
    "among",
    "apply_takedown",
    "commit_embeddings",
    "commit_images",
    "committed_pieces",
    "done_names",
    "embeddings_table",
    "hold_lease",
    "id_array",
    "id_keys",
    "id_matrix",
    "is_applied",
    "key_array",
    "key_bytes",
    "key_matrix",
    "open_store",
    "read_embeddings",
    "read_marker",
    "read_record",
    "read_table",
    "read_takedown_list",
    "refusals",
    "shard_states",
    "write_marker",
    "write_table",
    "write_whole",
]
