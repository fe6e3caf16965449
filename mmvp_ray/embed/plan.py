"""Which pieces lack which tables: the work that is left, from the shards as listed and the markers as found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmvp_ray.sources.estimate import bytes_per_member, num_members
from mmvp_ray.sources.piece import PIECE_MEMBERS, Shard
from mmvp_ray.store import Store, shard_states

NUM_LISTING_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardWork:
    """A shard with something left to do.

    Attributes:
        shard: The shard.
        images_done: Pieces whose images and rejects tables are committed.
        embedded: For each encoder's slug, the pieces whose vectors are committed.
    """

    shard: Shard
    images_done: frozenset[int]
    embedded: dict[str, frozenset[int]]

    @property
    def skip(self) -> frozenset[int]:
        """Pieces that nothing is left to do for."""
        return frozenset.intersection(self.images_done, *self.embedded.values())

    def missing(self, index: int) -> list[str]:
        """Slugs of the encoders that piece `index` lacks."""
        return [slug for slug, done in self.embedded.items() if index not in done]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work of an embedding pass, and how large it is.

    Attributes:
        work: Shards with something left to do, in the order of the listing.
        num_shards: All shards of the run.
        num_pieces_done: Pieces with all their tables.
        num_pieces_left: Pieces to do; an estimate (from bytes) for shards that nobody has read to the end.
        num_images_left: Images in them; likewise.
        num_images_total: Images of all shards of the run; likewise.
    """

    work: tuple[ShardWork, ...]
    num_shards: int
    num_pieces_done: int
    num_pieces_left: int
    num_images_left: int
    num_images_total: int


def plan_work(store: Store, shards: Sequence[Shard], encoders: Sequence[str]) -> Plan:
    """Compare the shards with the markers in the store.

    Args:
        store: Where tables are and will be.
        shards: All shards of the run, of one or several corpora.
        encoders: Slugs of the encoders that the run needs.
    """
    corpora = sorted({shard.corpus for shard in shards})
    mine = {corpus: [shard for shard in shards if shard.corpus == corpus] for corpus in corpora}
    folders: dict[tuple[str, str | None], str] = {(corpus, None): store.images(corpus) for corpus in corpora}
    folders |= {(corpus, slug): store.embeddings(slug, corpus) for corpus in corpora for slug in encoders}
    with ThreadPoolExecutor(NUM_LISTING_THREADS) as pool:
        states = dict(
            zip(
                folders,
                pool.map(lambda at: shard_states(folders[at], mine[at[0]]), folders),
                strict=True,
            )
        )

    work: list[ShardWork] = []
    num_done = num_left = num_images = num_total = 0
    # The shards of a corpus are alike: a look into one of them tells how many images the others hold.
    member_bytes = {corpus: bytes_per_member(shards_of[0]) for corpus, shards_of in mine.items()}
    for shard in shards:
        images = states[shard.corpus, None][shard.key]
        vectors = {slug: states[shard.corpus, slug][shard.key] for slug in encoders}
        item = ShardWork(
            shard=shard,
            images_done=images.done,
            embedded={slug: state.done for slug, state in vectors.items()},
        )
        num_done += len(item.skip)
        members = num_members(shard, member_bytes[shard.corpus])
        num_total += members
        if images.complete and all(state.complete for state in vectors.values()):
            continue
        work.append(item)
        pieces = images.num_pieces or max(1, math.ceil(members / PIECE_MEMBERS), max(images.done, default=0) + 1)
        left = max(1, pieces - len(item.skip))
        num_left += left
        num_images += min(members, left * PIECE_MEMBERS)
    return Plan(
        work=tuple(work),
        num_shards=len(shards),
        num_pieces_done=num_done,
        num_pieces_left=num_left,
        num_images_left=num_images,
        num_images_total=num_total,
    )
