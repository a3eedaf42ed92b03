"""Random numbers as a pure function of a position in a run, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def generator(*key: int | str) -> np.random.Generator:
    """Return a PCG64 generator seeded by all of ``key``, for example ``generator(seed, "source", step)``.

    The key's text is hashed (BLAKE2b, 128 bits), so similar seeds and names give independent streams.
    """
    text = repr([part if isinstance(part, str) else int(part) for part in key])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def seed_step(*key: int | str) -> torch.Generator:
    """Seed torch's global generators (initialisation, dropout) for one step and return its own CPU generator.

    ``key`` is the position in the run, such as ``(seed, "adaptation", step)``.
    """
    first, second = generator(*key).integers(2**63, size=2).tolist()
    torch.manual_seed(first)
    return torch.Generator().manual_seed(second)
