"""Random numbers as a pure function of a place in a run: a resumed run draws what an uninterrupted one would have."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def generator(*key: int | str) -> np.random.Generator:
    """A PCG64 generator seeded by all of ``key``, for example ``generator(seed, "source", step)``.

    The key's text is hashed (BLAKE2b, 128 bits), so neighbouring seeds and names give independent streams.
    """
    text = repr([part if isinstance(part, str) else int(part) for part in key])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def seed_step(*place: int | str) -> torch.Generator:
    """Seed torch's global generators (initialisation, dropout) for one place of a run, such as
    ``(seed, "adaptation", step)``, and return that place's own CPU generator."""
    first, second = generator(*place).integers(2**63, size=2).tolist()
    torch.manual_seed(first)
    return torch.Generator().manual_seed(second)
