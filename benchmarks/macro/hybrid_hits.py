"""How much of their prompts a hybrid finds in its cache, beside a plain model with the same keys and values and bytes.

    python benchmarks/macro/hybrid_hits.py                 # Qwen3-Next's shapes at 4, 16 and 64 GiB, 60 users

Users talk in sessions of several turns; each prompt repeats all that came before, and begins with one of a few system
prompts. When a session ends, its user begins another one. The real scheduler and cache run without a model, and a step
takes no time. The hybrid pays for its checkpoints out of the same bytes, the plain model has none.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from array import array
from dataclasses import dataclass, field, replace

from kvtrove.kv.formats.dense import dense
from kvtrove.kv.plane import LayerState, Plane
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.plan.simulate.replica import Replica
from kvtrove.plan.simulate.settings import INSTANT, SimulationSettings
from kvtrove.request import RequestError

SHAPES = {  # bytes of keys and values a token, and of a checkpoint: docs/models.md
    "lfm2": (12_288, 80 << 10),
    "qwen3_next": (24_576, 73_728 << 10),
    "qwen3_5-27b": (65_536, 150_300 << 10),
}


@dataclass(frozen=True)
class Load:
    """Medians of tokens, and turns of a session in the mean."""

    system: int
    first: int
    message: int
    answer: int
    turns: int


LOADS = {
    "agents": Load(system=6000, first=1000, message=1500, answer=300, turns=16),
    "documents": Load(system=1500, first=9000, message=250, answer=300, turns=8),
}


@dataclass
class Session:
    """tokens: all that was said. left: turns still to come. waits: the message of the next one."""

    tokens: array[int]
    left: int
    borders: list[int] = field(default_factory=list)


class Users:
    """Tokens that nobody else says are counted on; a system prompt is one of a few."""

    def __init__(self, num: int, seed: int, load: Load) -> None:
        self.random, self.next_token, self.load = random.Random(seed), 1000, load
        self.systems = [self.fresh(self.length(load.system, 0.4)) for _ in range(6)]
        self.sessions = {user: self.new_session() for user in range(num)}

    def length(self, median: float, spread: float) -> int:
        return max(8, int(self.random.lognormvariate(0, spread) * median))

    def fresh(self, num: int) -> array[int]:
        self.next_token += num
        return array("i", range(self.next_token - num, self.next_token))

    def new_session(self) -> Session:
        system = self.random.choice(self.systems)
        tokens = system + self.fresh(self.length(self.load.first, 0.8))
        return Session(tokens, 1 + int(self.random.expovariate(1 / self.load.turns)), [len(system), len(tokens)])


def hit_ratio(spec: KVCacheSpec, size: int, users: Users, requests: int, *, strips: bool) -> dict[str, float]:
    """Percent of the prompts' tokens that was reused, and of the pool that checkpoints had at the end."""
    num_blocks = size // spec.block_bytes
    replica = Replica(SimulationSettings(spec.block_size, num_blocks, INSTANT, cache=spec))
    turns = [(users.random.expovariate(1 / 60), user) for user in users.sessions]
    heapq.heapify(turns)
    asked = reused = counted = 0
    for number in range(requests):
        now, user = heapq.heappop(turns)
        session = users.sessions[user]
        new = users.length(users.load.answer, 0.7)
        try:
            request = replica.add(str(number), session.tokens, new, now, -1 - number, session.borders)
        except RequestError:
            session.left = 0
        else:
            while replica.is_busy:
                list(replica.step(float("inf")))
            if number >= requests // 4:  # the others fill the cache
                counted += 1
                asked += len(session.tokens)
                reused += request.num_cached_tokens or 0
            session.left -= 1
            said = users.fresh(new // 3) if strips else array("i", [-1 - number]) * new
            session.tokens = session.tokens + said + users.fresh(users.length(users.load.message, 0.8))
            session.borders = [*session.borders, len(session.tokens)]
        if session.left <= 0:
            users.sessions[user] = users.new_session()
        heapq.heappush(turns, (now + users.random.expovariate(1 / 60), user))
    marks = replica.kv.stats().marks
    share = marks.blocks / num_blocks if marks else 0.0
    return {"hits": 100 * reused / asked, "marks_share": 100 * share, "mean_prompt": asked / counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen3_next")
    parser.add_argument("--gib", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--load", choices=LOADS, default="agents")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strips", action="store_true", help="prompts repeat another text than was answered")
    args = parser.parse_args()
    per_token, state = SHAPES[args.model]
    layers = (LayerKV(0, 1, per_token // 4, per_token // 4, dense("bfloat16")),)
    plain = KVCacheSpec(layers, 32)
    hybrid = replace(plain, states=(LayerState(1, "state/1", (Plane("state", "uint8", (state,)),)),))
    for gib in args.gib:
        runs = {
            name: hit_ratio(
                spec, gib << 30, Users(args.users, args.seed, LOADS[args.load]), args.requests, strips=args.strips
            )
            for name, spec in (("plain", plain), ("hybrid", hybrid))
        }
        hits = {name: round(found["hits"], 1) for name, found in runs.items()}
        prompt, share = round(runs["plain"]["mean_prompt"]), round(runs["hybrid"]["marks_share"], 1)
        print(json.dumps({"load": args.load, "prompt": prompt, "gib": gib, **hits, "marks_share": share}), flush=True)


if __name__ == "__main__":
    main()
