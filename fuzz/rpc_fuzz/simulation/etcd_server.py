"""An etcd of several members for simulations: its store behind the gateway for HTTP."""

import asyncio
import json
from base64 import b64decode, b64encode
from typing import Any

from rpc_discovery.etcd.operations import (
    Grant,
    Granted,
    Header,
    KeepAlive,
    KeptAlive,
    KeyValue,
    Leased,
    LeaseKeys,
    Question,
    Range,
    Ranged,
    Revoke,
    Watch,
    Watched,
    Write,
)
from rpc_fuzz.etcd import Refusal, Store

from .loop import Machine, SimulatedLoop

__all__ = ["EtcdCluster"]

PORT = 2379

# What HTTP statuses the gateway gives for codes of gRPC.
_STATUSES = {3: 400, 5: 404, 7: 403, 9: 400, 11: 400, 14: 503, 16: 401}
_NO_LEADER = Refusal(14, "etcdserver: no leader")
_LOOK = 0.5  # seconds between two looks at the leases


class EtcdCluster:
    """The members and what they agree on; without a majority they agree on nothing."""

    def __init__(self, loop: SimulatedLoop, names: list[str]) -> None:
        self.loop = loop
        self.store = Store()
        self.members: dict[str, Machine | None] = dict.fromkeys(names)
        self._changed = asyncio.Event()  # replaced by a new one when it is set
        self._ticking = loop.create_task(self._tick())

    @property
    def urls(self) -> list[str]:
        return [f"http://{name}:{PORT}" for name in self.members]

    @property
    def has_leader(self) -> bool:
        alive = [m for m in self.members.values() if m is not None and not m.paused]
        return 2 * len(alive) > len(self.members)

    def start(self, machine: Machine) -> None:
        """Start a member."""
        self.members[machine.name] = machine
        machine.spawn(self._serve())

    async def _serve(self) -> None:
        await asyncio.start_server(self._talk, "", PORT)

    def elect(self) -> None:
        """Begin a term with a new leader, which gives each lease all of its time again."""
        self.store.restart(self.loop.now)

    def told(self) -> None:
        """Wake the watches: something has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _tick(self) -> None:
        had_leader = True
        while True:
            await asyncio.sleep(_LOOK)
            if not self.has_leader:  # nobody counts the time
                had_leader = False
                continue
            if not had_leader:
                had_leader = True
                self.elect()
            revision = self.store.revision
            self.store.expire(self.loop.now)
            if self.store.revision != revision:
                self.told()

    def close(self) -> None:
        self._ticking.cancel()

    # A member's connections

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, _, rest = head.partition(b"\r\n")
                fields = dict(
                    field.lower().split(b": ", 1) for field in rest.split(b"\r\n") if field
                )
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                path = line.split(b" ")[1].decode()
                await self._answer(path, json.loads(body or b"{}"), writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, path: str, fields: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        question = _question(path, fields)
        try:
            if not self.has_leader:
                raise _NO_LEADER
            if isinstance(question, Watch):
                await self._watch(question, writer)
                return
            revision = self.store.revision
            answer = self.store.answer(question, "", self.loop.now)
            if self.store.revision != revision:
                self.told()
            status, value = 200, _plain(question, answer)
        except Refusal as refusal:
            status = _STATUSES.get(refusal.code, 500)
            value = {"code": refusal.code, "message": str(refusal)}
        data = json.dumps(value).encode()
        writer.write(
            b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(data), data)
        )
        await writer.drain()

    async def _watch(self, question: Watch, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
        store = self.store
        self._say(writer, Watched(store.header, created=True))
        following = question.revision
        while True:
            await writer.drain()
            changed = self._changed
            if not self.has_leader:
                writer.transport.abort()
                raise ConnectionError
            if following <= store.compacted:
                compacted = store.compacted
                self._say(writer, Watched(store.header, canceled=True, compacted=compacted))
                writer.write(b"0\r\n\r\n")
                return
            if following <= store.revision:
                changes = store.changes(question.key, question.end, following)
                following = store.revision + 1
                if changes:
                    self._say(writer, Watched(store.header, changes=changes))
                continue
            await changed.wait()

    def _say(self, writer: asyncio.StreamWriter, message: Watched) -> None:
        value: dict[str, Any] = {"header": _header(message.header)}
        if message.created:
            value["created"] = True
        if message.canceled:
            value["canceled"] = True
            value["compact_revision"] = str(message.compacted)
        value["events"] = [
            {"type": "DELETE" if change.deleted else "PUT", "kv": _key_value(change.kv)}
            for change in message.changes
        ]
        data = json.dumps({"result": value}).encode() + b"\n"
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _question(path: str, fields: dict[str, Any]) -> Question:
    kind = path.removeprefix("/v3/")
    if kind == "kv/range":
        return Range(
            _bytes(fields, "key"),
            _bytes(fields, "range_end"),
            int(fields.get("revision", 0)),
            int(fields.get("limit", 0)),
        )
    if kind == "kv/txn":
        steps = fields["success"]
        puts = [step["request_put"] for step in steps if "request_put" in step]
        deletes = [step["request_delete_range"] for step in steps if "request_put" not in step]
        return Write(
            tuple((_bytes(put, "key"), _bytes(put, "value")) for put in puts),
            tuple(_bytes(delete, "key") for delete in deletes),
            int(puts[0].get("lease", 0)) if puts else 0,
        )
    if kind == "lease/grant":
        return Grant(int(fields["TTL"]))
    if kind == "lease/keepalive":
        return KeepAlive(int(fields["ID"]))
    if kind == "lease/timetolive":
        return LeaseKeys(int(fields["ID"]))
    if kind == "lease/revoke":
        return Revoke(int(fields["ID"]))
    assert kind == "watch", path
    create = fields["create_request"]
    start = int(create.get("start_revision", 0))
    return Watch(_bytes(create, "key"), _bytes(create, "range_end"), start)


def _bytes(fields: dict[str, Any], name: str) -> bytes:
    return b64decode(fields.get(name, ""))


def _plain(question: Question, answer: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"header": _header(answer.header)}
    if isinstance(answer, Ranged):
        value["kvs"] = [_key_value(kv) for kv in answer.kvs]
        value["more"] = answer.more
    elif isinstance(answer, Granted):
        value |= {"ID": str(answer.lease), "TTL": str(answer.ttl)}
    elif isinstance(answer, KeptAlive):
        assert isinstance(question, KeepAlive)
        return {"result": {**value, "ID": str(question.lease), "TTL": str(answer.ttl)}}
    elif isinstance(answer, Leased):
        keys = [b64encode(key).decode() for key in answer.keys]
        value |= {"TTL": str(answer.ttl), "keys": keys}
    return value


def _header(header: Header) -> dict[str, str]:
    names = ("cluster_id", "member_id", "revision", "raft_term")
    return {name: str(number) for name, number in zip(names, header, strict=True)}


def _key_value(kv: KeyValue) -> dict[str, str]:
    return {
        "key": b64encode(kv.key).decode(),
        "value": b64encode(kv.value).decode(),
        "mod_revision": str(kv.revision),
        "lease": str(kv.lease),
    }
