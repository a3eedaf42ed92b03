"""Random generators that are a pure function of a key, the same in every process and on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A PCG64 generator seeded by all of ``key``, for example ``generator(seed, "source", step)``.

    The key's text is hashed (BLAKE2b, 128 bits), so neighbouring seeds and names give independent streams.
    """
    text = repr([part if isinstance(part, str) else int(part) for part in key])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
