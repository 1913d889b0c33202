"""Who a particle is, in 64 bits: (resolved stack, index), whatever its columns say."""

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cesped_stream.particles.stacks import STACK_LABEL, parse_image_name
from cesped_stream.particles.table import ParticleTable

UInt64 = NDArray[np.uint64]


def particle_digests(table: ParticleTable) -> UInt64:
    """Return 64 bits `(n,)` of each particle's identity, (resolved stack, index), whatever its columns say.

    The stack is `cestreamStack`, else rlnImageName relative to the star's folder. Two particles of ten million share
    a digest with a probability of 3e-6.
    """
    names = [parse_image_name(text) for text in table.column("rlnImageName")]
    if STACK_LABEL in table:
        stacks = table.column(STACK_LABEL)
    else:
        base = Path(table.source).parent
        stacks = [quote(os.path.realpath(base / name)) for _, name in names]
    digests = [
        hashlib.blake2b(f"{index}@{stack}".encode(), digest_size=8).digest()
        for (index, _), stack in zip(names, stacks, strict=True)
    ]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
