"""The floor: echo with a 4-byte length and msgpack on gevent's hub, no RPC at all.

What is left is what any program pays that waits for answers on this runtime: its callers are
greenlets, and each waits until the hub switches back to it. No ids (answers come in order), no
method names, no errors, no timeouts, no limits.
"""

import _socket
import struct
import time
from collections import deque

import gevent
import msgpack
from gevent import socket

_LENGTH = struct.Struct(">I")
_pack = msgpack.Packer().pack
bytes(16 * 1024 * 1024)  # freed at once: from now on malloc keeps blocks of 1 MiB


class _Framed:
    def __init__(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = _socket.socket(fileno=sock.detach())  # its calls return at once
        self.hub = gevent.get_hub()
        self.view = memoryview(bytearray(64 * 1024))
        self.filled = 0
        self.unsent = b""
        self.writer = self.hub.loop.io(self.sock.fileno(), 2)
        self.reader = self.hub.loop.io(self.sock.fileno(), 1)
        self.reader.start(self.readable)

    def close(self):
        self.reader.stop()
        self.writer.stop()
        self.sock.close()

    def readable(self):
        try:
            count = self.sock.recv_into(self.view[self.filled :])
        except BlockingIOError:
            return
        except ConnectionError:
            count = 0
        if not count:
            self.close()
            return
        filled = self.filled + count
        view = self.view
        start = 0
        messages = []
        while filled - start >= 4:
            (size,) = _LENGTH.unpack_from(view, start)
            end = start + 4 + size
            if filled < end:
                if size + 4 > len(view):
                    grown = memoryview(bytearray(size + 4))
                    grown[: filled - start] = view[start:filled]
                    self.view = view = grown
                    filled -= start
                    start = 0
                break
            messages.append(msgpack.unpackb(view[start + 4 : end]))
            start = end
        rest = filled - start
        if start and rest:
            view[:rest] = bytes(view[start:filled])
        self.filled = rest
        if messages:
            self.received(messages)

    def send(self, messages):
        out = []
        for message in messages:
            body = _pack(message)
            out.append(_LENGTH.pack(len(body)))
            out.append(body)
        if len(out) == 2 and len(out[1]) > 65536:
            self.write(out[0])
            self.write(out[1])
        else:
            self.write(b"".join(out))

    def write(self, data):
        if self.unsent:
            self.unsent = bytes(self.unsent) + data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.writer.start(self.writable)

    def writable(self):
        unsent, self.unsent = self.unsent, b""
        self.writer.stop()
        self.write(unsent)


class _Server(_Framed):
    def received(self, messages):
        self.send(messages)


class _Client(_Framed):
    """Answers come in order, so each goes to the caller that has waited longest."""

    def __init__(self, sock):
        super().__init__(sock)
        self.waiters = deque()
        self.requests = []
        self.answer = None

    def call(self, message):
        self.waiters.append(gevent.getcurrent())
        if len(self.waiters) == 1:
            self.send([message])
        else:
            if not self.requests:
                self.hub.loop.run_callback(self.flush)
            self.requests.append(message)
        self.hub.switch()
        return self.answer

    def flush(self):
        self.send(self.requests)
        self.requests.clear()

    def received(self, messages):
        for message in messages:
            self.answer = message
            self.waiters.popleft().switch()


def serve(announce):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    announce(listener.getsockname()[1])
    while True:
        _Server(listener.accept()[0])


def load(address, *, connections, in_flight, payload, seconds):
    """Return the number of echoes, and the seconds they took."""
    clients = [
        _Client(socket.create_connection(("127.0.0.1", int(address)))) for _ in range(connections)
    ]
    count = 0
    start = time.monotonic()
    stop = start + seconds

    def caller(client):
        nonlocal count
        call = client.call
        while time.monotonic() < stop:
            call(payload)
            count += 1

    gevent.joinall([gevent.spawn(caller, client) for client in clients for _ in range(in_flight)])
    elapsed = time.monotonic() - start
    for client in clients:
        client.close()
    return count, elapsed
