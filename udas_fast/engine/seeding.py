"""Randomness as a pure function of the place in a run: a resumed run draws what the first would have."""

from __future__ import annotations

import torch

from udas_fast.data.seeding import generator


def seed_step(*place: int | str) -> torch.Generator:
    """Seed torch's global generators (initialisation, dropout) for one place of a run, such as
    ``(seed, "adaptation", step)``, and return that place's own CPU generator."""
    first, second = generator(*place).integers(2**63, size=2).tolist()
    torch.manual_seed(first)
    return torch.Generator().manual_seed(second)
