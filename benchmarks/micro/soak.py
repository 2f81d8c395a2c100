"""Traffic that never repeats itself, and what the router holds of it: bytes, part by part, as requests go by.

    .venv/bin/python -m benchmarks.micro.soak
    .venv/bin/python -m benchmarks.micro.soak --policy lmetric --orders lru
    .venv/bin/python -m benchmarks.micro.soak --shadow all --requests 200000

Without options it plays a million requests under lbgr, before engines of both kinds of index.

Every request has a prompt, an id, a session and a model that nobody named before, names as long as the gateway lets
them through; most are text, half are streamed, one in five ends badly, in each way there is. Engines' caches are
larger than the prefix index, so that its own cap holds. A line a checkpoint: bytes are the sizes of all objects that
can be reached from the router, each counted once (`sys.getsizeof`; functions, classes and modules left out); MB 10^6
bytes. The caps are those that the options and docstrings of the parts state, see `cap_bytes`.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType

from router.config import Config, configure
from router.core.router import Router
from router.core.sessions import LEAST_BLOCKS
from router.gateway.openai_request import NAME_CHARS
from router.learners.estimates import CLASSES
from router.policies.smetric import TURNS
from router.policies.table import TABLE
from router.prefix.blocks import extend
from router.types import BlockKey, Decision, Ending, EngineId, EngineInfo, Outcome, ParsedRequest, Prompt

BLOCK_TOKENS, PROMPT_BLOCKS, ENGINE_BLOCK = 64, 8, 16
BYTES_PER_TOKEN = 4
IN_FLIGHT = 64
REQUEST_ID = "r" * 120  # and a number: 128 characters at most
NOT_COUNTED = (type, ModuleType, FunctionType, BuiltinFunctionType)

BLOCK_BYTES, DECISION_BYTES, CLASS_BYTES, TURN_BYTES, SESSION_BYTES = 300, 3000, 600, 150, 1400
"""Stated caps of one entry: of the prefix index, the decision log, the learners, smetric's turns, the sessions."""
FIXED_BYTES = 500_000  # engines, requests in flight, policies


def size_bytes(root: object, seen: set[int] | None = None) -> int:
    """The bytes of all objects that `root` leads to, without those whose ids are in `seen`, to which they are added."""
    seen = set() if seen is None else seen
    total, waiting = 0, [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, NOT_COUNTED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        waiting.extend(gc.get_referents(each))
        if isinstance(each, dict):
            waiting.extend(each)  # the collector passes over keys that are text
    return total


def sizes_of(router: Router) -> dict[str, int]:
    """Bytes by part of the router; what two parts share counts for the first."""
    seen = {id(router)}
    return {name.lstrip("_"): size_bytes(part, seen) for name, part in sorted(vars(router).items())}


def cap_bytes(config: Config) -> int:
    """What a router may hold under this configuration, whatever the traffic."""
    learners = 2 * CLASSES * CLASS_BYTES
    turns = TURNS * TURN_BYTES if "smetric" in (config.routing.policy, *config.routing.shadow) else 0
    index = config.routing.prefix_index_blocks * BLOCK_BYTES
    decision_log = config.routing.decision_log_size * DECISION_BYTES
    sessions = config.routing.prefix_index_blocks // LEAST_BLOCKS * SESSION_BYTES
    return index + decision_log + learners + turns + sessions + FIXED_BYTES


def router_of(config: Config, orders: Sequence[str]) -> Router:
    """One engine for each order, its cache larger than the whole index."""
    router = Router(config.routing, config.policies, rng=random.Random(0))
    blocks = 2 * config.routing.prefix_index_blocks * BLOCK_TOKENS // ENGINE_BLOCK
    for number, order in enumerate(orders):
        engine = EngineId(f"engine-{number}")
        router.add_engine(engine)
        router.set_info(engine, EngineInfo(order=order, block_size=ENGINE_BLOCK, capacity_blocks=blocks))
        router.set_health(engine, True)
    return router


def request_of(number: int, rng: random.Random) -> ParsedRequest:
    text = number % 8 > 0
    unit = BYTES_PER_TOKEN if text else 1
    keys = tuple([BlockKey(rng.getrandbits(64)) for _ in range(PROMPT_BLOCKS)])
    block_units = BLOCK_TOKENS * unit
    units = PROMPT_BLOCKS * block_units + 8
    prompt = Prompt(BlockKey(0), keys, block_units, units, b"the tail" if text else tuple(range(8)), not text)
    return ParsedRequest(
        f"{REQUEST_ID}{number:08d}",
        "/v1/completions",
        f"model {number}".ljust(NAME_CHARS, "m"),
        prompt,
        number % 2 == 0,
        None if number % 5 else 1 + number % 4096,
        session=f"session {number}".ljust(NAME_CHARS, "s"),
    )


def complete(router: Router, decision: Decision, now: float, number: int) -> None:
    """One request in five ends badly, in each of the ways there are in turn."""
    request, ending = decision.request, Ending.OK
    if number % 5 == 0:
        endings = [each for each in Ending if each is not Ending.OK]
        ending = endings[number // 5 % len(endings)]
    first_s = None
    if request.stream and (ending is Ending.OK or number % 10 == 0):
        router.first_token(decision, first_s := now)
    tokens = BLOCK_TOKENS
    reply: bytes | tuple[int, ...] = tuple(range(number, number + tokens))
    if not request.prompt.in_tokens:
        reply = f"{number:08d}".encode() * (tokens * BYTES_PER_TOKEN // 8)
    prompt_tokens = PROMPT_BLOCKS * BLOCK_TOKENS
    reply_keys = extend(request.prompt, reply)
    router.complete(decision, Outcome(ending, now + 0.01, first_s, prompt_tokens, 0, tokens, reply_keys))


def soak(router: Router, requests: int, checkpoints: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Play the requests; give their number so far and `sizes_of` at so many points, evenly apart."""
    rng, now = random.Random(1), 0.0
    in_flight: deque[tuple[int, Decision]] = deque()
    for number in range(1, requests + 1):
        now += 0.01
        in_flight.append((number, router.route(request_of(number, rng), now)))
        if len(in_flight) > IN_FLIGHT:
            begun, decision = in_flight.popleft()
            complete(router, decision, now, begun)
        if number * checkpoints // requests > (number - 1) * checkpoints // requests:
            yield number, sizes_of(router)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--policy", default="lbgr", choices=sorted(TABLE))
    parser.add_argument("--shadow", default="", help="policies beside it, comma-separated, or all")
    parser.add_argument("--orders", default="lru,lru,rlt_gix,rlt_gix", help="eviction order of each engine")
    parser.add_argument("--out", help="JSON file of all lines")
    arguments = parser.parse_args()
    names = TABLE if arguments.shadow == "all" else filter(None, arguments.shadow.split(","))
    shadow = tuple(name for name in names if name != arguments.policy)
    config = configure(policy=arguments.policy, shadow=shadow)
    router, start, total = router_of(config, arguments.orders.split(",")), time.process_time(), 0
    lines: list[dict[str, object]] = []
    print(f"cap {cap_bytes(config) / 1e6:.1f} MB; CPU seconds; index blocks; MB of each part")
    for number, sizes in soak(router, arguments.requests, arguments.checkpoints):
        total, seconds = sum(sizes.values()), time.process_time() - start
        parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items() if size > 20_000)
        print(f"{number:9d} {seconds:7.1f} s {router.index_blocks:7d} {total / 1e6:7.2f} MB = {parts}", flush=True)
        lines.append({"requests": number, "cpu_s": seconds, "index_blocks": router.index_blocks, "bytes": sizes})
    print(f"resident at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB, the process and all")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"arguments": vars(arguments), "cap_bytes": cap_bytes(config), "lines": lines}, file, indent=1)
    return 0 if total <= cap_bytes(config) else 1


if __name__ == "__main__":
    sys.exit(main())
