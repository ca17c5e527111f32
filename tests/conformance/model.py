"""The values that travel in the typed cases; both ends know these classes."""

import dataclasses
import datetime
import enum


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Item:
    name: str
    count: int = 1
    colour: Colour | None = None


@dataclasses.dataclass
class Order:
    id: int
    placed: datetime.datetime
    items: list[Item]
    prices: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str | None = None
    seal: bytes = b""


class Typed:
    """What clients know of the service of this name, and what it does."""

    def add(self, a: int, b: int) -> int:
        return a + b

    def confirm(self, order: Order, colour: Colour = Colour.RED) -> Order:
        items = [dataclasses.replace(item, colour=item.colour or colour) for item in order.items]
        return dataclasses.replace(order, id=order.id + 1, items=items, seal=order.seal[::-1])

    def postpone(self, when: datetime.datetime, *, days: int) -> datetime.datetime:
        return when + datetime.timedelta(days=days)

    def other(self, colour: Colour) -> Colour:
        return Colour.BLUE if colour is Colour.RED else Colour.RED

    def half(self, value: int | str | None) -> int | str | None:
        if value is None:
            return None
        return value // 2 if isinstance(value, int) else value[: len(value) // 2]

    def group(self, items: list[Item]) -> dict[str, list[Item]]:
        groups: dict[str, list[Item]] = {}
        for item in items:
            groups.setdefault(item.name, []).append(item)
        return groups

    def total(self, *numbers: int) -> int:
        return sum(numbers)

    def reverse(self, data: bytes) -> bytes:
        return data[::-1]
