"""SearchConfig: how near pairs are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmvp_ray.errors import ConfigError

EngineName = Literal["exact", "routed", "ivfpq"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How near pairs are looked for; every engine writes the same tables, and every run measures its own recall."""

    engine: Literal["auto", "exact", "routed", "ivfpq"] = "auto"
    """exact compares all pairs; routed only those that share a cell; ivfpq asks a compressed index. auto says why it chose."""
    provable: bool = False
    """Let the routed engine visit every cell that can hold a near pair: it then finds what exact finds, for some three times the work."""
    target_recall: float = 0.999
    """Share of near pairs that the calibrated routed engine aims to find."""
    num_cells: int | None = None
    """Cells of the routed engine; about one for 96 images unless given."""
    refit_cells: bool = False
    """Fit the cells anew instead of keeping those of the earlier run that this one builds on; the pairs that it found are kept."""
    num_neighbours: int = 32
    """Neighbours of each image that the ivfpq engine asks for at first; more where they are all near."""
    num_probes: int | None = None
    """Lists that the ivfpq engine looks through for each image at most; a calibrated distance decides unless given."""
    bytes_per_vector: int = 64
    """Size of a compressed vector of the ivfpq engine."""
    audit_pairs: int = 3840
    """True pairs that the audit tries to rest on, enough to support a recall of 0.999 if none is missed: independent ones, unless the engine finds every pair by construction."""
    audit_share: float = 0.05
    """Share of the comparisons of an exact join that the audit may take; at least 1,000 images are looked at."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("num_cells", "num_neighbours", "num_probes", "bytes_per_vector", "audit_pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"expected at least 1, found {value} in --{name.replace('_', '-')}; give a positive number"
                )
        if not 0.0 < self.target_recall < 1.0:
            raise ConfigError(
                f"expected a share between 0 and 1, found {self.target_recall} in --target-recall; --provable finds all pairs"
            )
        if not 0.0 <= self.audit_share <= 1.0:
            raise ConfigError(
                f"expected a share between 0 and 1, found {self.audit_share} in --audit-share; 0.05 is usual"
            )
        if self.provable and self.engine in ("exact", "ivfpq"):
            raise ConfigError(
                f"expected --engine routed (or auto) with --provable, found {self.engine}; exact finds all pairs without it"
            )
