"""consistent_hash: a conversation stays on one engine, unless that engine has more than its share of the load.

    room = ceil(c (1 + sum n_i) / M)                                 c: the option load_factor, 1.25
    i*   = the first engine with n_i < room in the key's own order of the engines

n_i: requests in flight on engine i; M: the number of engines. The key is the session that the client names. Without one
it is the chained key of the prompt's first two blocks, so that prompts with a common beginning meet. The key's order of
the engines is by a hash of (key, engine), the highest first (rendezvous hashing: Thaler and Ravishankar, IEEE/ACM ToN
1998). So an engine that leaves hands on only its own keys, and one that joins takes 1/(M+1) of the keys of every other.
The load bound is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA 2018).

vllm-project/router (src/policies/consistent_hash.rs) and sgl-project/sglang hash onto a ring with 160 points for each
engine and have no load bound. An order by hashes is such a ring without its unevenness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from router.options import option
from router.policies.base import RoutingContext, Totals, TotalsPolicy
from router.types import Candidate, EngineId, ParsedRequest

KEY_BLOCKS = 2  # blocks of the prompt that make the key where the client names no session
MASK = 2**64 - 1


@dataclass(frozen=True)
class ConsistentHashOptions:
    """The option is c above."""

    load_factor: float = option(1.25, "load an engine may have over the mean before its keys go to the next", low=1)


class ConsistentHash(TotalsPolicy[ConsistentHashOptions]):
    """The total is a rank: the engine's place in the key's order. Engines without room come after all others."""

    name = "consistent_hash"
    Options = ConsistentHashOptions

    def weigh(self, routing: RoutingContext, candidates: Sequence[Candidate]) -> Totals:
        count = len(candidates)
        load = 1 + sum([view.in_flight for view, _ in candidates])
        room = math.ceil(self.options.load_factor * load / count)
        key = key_of(routing.request)
        weights = [mix(key ^ _seed(view.engine)) for view, _ in candidates]
        totals = [0.0] * count
        for place, n in enumerate(sorted(range(count), key=weights.__getitem__, reverse=True)):
            totals[n] = float(place if candidates[n].view.in_flight < room else place + count)
        return Totals(totals)


def key_of(request: ParsedRequest) -> int:
    """A 64-bit key that the requests of one conversation have in common."""
    if request.session is not None:
        return _hash(request.session.encode(errors="surrogatepass"))
    prompt = request.prompt
    if prompt.keys:
        return prompt.keys[min(KEY_BLOCKS, len(prompt.keys)) - 1]
    return _hash(repr((prompt.root, prompt.tail)).encode())


def mix(x: int) -> int:
    """A bijection of 64-bit numbers that sends near numbers far apart: the finisher of SplitMix64 (Steele, Lea and
    Flood, OOPSLA 2014)."""
    x &= MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=4096)
def _seed(engine: EngineId) -> int:
    return _hash(engine.encode())


def _hash(data: bytes) -> int:
    """A 64-bit hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
