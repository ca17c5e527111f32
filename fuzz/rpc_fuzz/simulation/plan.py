"""What happens in a simulation: its shape and its faults, drawn from a seed, kept as JSON."""

import json
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any, Self

__all__ = ["KINDS", "Fault", "Plan"]

# Every kind of fault, and how often it is drawn in relation to the others.
KINDS = {
    "latency": 3,  # every path takes longer, by a random part of `value` seconds
    "slow": 2,  # the paths of a machine carry `value` bytes a second
    "one_way": 4,  # nothing gets from one machine to another
    "isolate": 3,  # nothing gets to a machine, or away from it
    "reset": 3,  # the connections of a machine are reset
    "reset_after": 4,  # each is when so many more bytes have come from its server
    "cut": 2,  # they end
    "half_close": 2,  # those who dialled say that they send nothing more
    "refuse": 2,  # dials are refused
    "lose_answer": 3,  # the next answers vanish with their connections
    "pause": 3,  # a machine stands still
    "kill": 4,  # its process ends, and is started again
    "power": 2,  # it vanishes without a word, and comes back
    "drain": 3,  # a server stops as it should, and is started again
    "gone": 3,  # a server is killed, and never comes back
    "wipe": 2,  # a registry begins anew, without a node
    "compact": 1,  # etcd forgets its history
    "lose_leases": 1,  # all leases of etcd end
    "elect": 1,  # etcd has a new leader
    "erase": 1,  # etcd loses everything
}

_LASTING = ("latency", "slow", "one_way", "isolate", "refuse", "pause", "kill", "power", "drain")


@dataclass(frozen=True)
class Fault:
    """One fault. Times in seconds; a fault that does not last has `lasts` 0."""

    at: float
    kind: str
    who: str = ""
    lasts: float = 0.0
    value: float = 0.0
    whom: str = ""  # the other end of a path


@dataclass(frozen=True)
class Plan:
    """A whole simulation: run twice, it does the same.

    `length` is the time with faults; afterwards all is healed, the views have to converge, and
    everything has to end.
    """

    seed: int
    servers: int
    late: int  # servers that start only when all is healed
    clients: int
    registries: int
    members: int  # of etcd
    length: float
    codec: str = "msgpack"
    drifts: dict[str, float] = field(default_factory=dict)  # of the clocks of machines
    faults: tuple[Fault, ...] = ()

    @classmethod
    def draw(cls, seed: int) -> Self:
        """Draw a plan."""
        random = Random(seed)
        plan = cls(
            seed=seed,
            servers=random.randint(2, 4),
            late=random.randint(0, 2),
            clients=random.randint(2, 4),
            registries=random.randint(1, 2),
            members=random.choice([1, 3]),
            length=round(random.uniform(20.0, 60.0), 1),
            codec=random.choice(["msgpack", "json"]),
        )
        names = plan.machines
        drifts = {name: random.choice([1.0, 1.0, 0.999, 1.002, 0.98]) for name in names}
        faults = tuple(plan._draw_fault(random) for _ in range(random.randint(4, 14)))
        return replace(
            plan,
            drifts={name: drift for name, drift in drifts.items() if drift != 1.0},
            faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        )

    @property
    def machines(self) -> list[str]:
        """The names of all machines."""
        counts = {
            "server": self.servers + self.late,
            "client": self.clients,
            "registry": self.registries,
            "etcd": self.members,
        }
        return [f"{kind}-{n}" for kind, number in counts.items() for n in range(number)]

    def _draw_fault(self, random: Random) -> Fault:
        kind = random.choices(list(KINDS), weights=list(KINDS.values()))[0]
        names = self.machines
        who = random.choice(names)
        if kind in ("drain", "gone"):
            who = f"server-{random.randrange(self.servers)}"
        elif kind == "wipe":
            who = f"registry-{random.randrange(self.registries)}"
        whom = random.choice([name for name in names if name != who])
        value = {
            "latency": random.choice([0.001, 0.02, 0.3, 1.5]),
            "slow": random.choice([200.0, 2000.0, 50_000.0]),
            "reset_after": float(random.choice([0, 1, 15, 17, 100, 1000, 20_000])),
            "lose_answer": float(random.randint(1, 4)),
        }.get(kind, 0.0)
        lasting = kind in _LASTING
        return Fault(
            at=round(random.uniform(0.5, self.length), 2),
            kind=kind,
            who=who,
            lasts=round(random.choice([0.05, 0.5, 3.0, 12.0]) * random.uniform(0.5, 2.0), 2)
            if lasting
            else 0.0,
            value=value,
            whom=whom if kind == "one_way" else "",
        )

    def dump(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, text: str) -> Self:
        """Read what `dump` returned."""
        fields: dict[str, Any] = json.loads(text)
        faults = tuple(Fault(**fault) for fault in fields.pop("faults"))
        return cls(**fields, faults=faults)
