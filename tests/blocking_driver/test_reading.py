"""The election of the thread that reads, over a transport that is a queue."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from queue import Empty, Queue
from select import POLLIN
from typing import Any

import pytest

from rpc_blocking.locks import OwnedLock
from rpc_blocking.reading import PATIENCE, Election, Waiter

LONG = 10.0  # seconds; no test waits so long unless it fails


class Pipe:
    """Gives what is put into it to whoever reads; `wait` ends when the bell rings, too."""

    def __init__(self) -> None:
        self.queue: Queue[Any] = Queue()
        self.unsent = b""
        self.readers: set[int] = set()
        self.most = 0  # threads that were in here at once
        self.waits = 0

    def receive(self) -> Any:
        with self._one_more():
            try:
                found = self.queue.get(timeout=PATIENCE)
            except Empty:
                return None
        if isinstance(found, BaseException):
            raise found
        return found

    def wait(self, timeout: float, what: int, bell: Any = None) -> bool:
        self.waits += 1
        with self._one_more():
            for _ in range(max(1, round(min(timeout, LONG) / PATIENCE))):
                if self.queue.qsize() or bell is None:
                    return True
                bell.settimeout(PATIENCE)
                try:
                    if bell.recv(1):
                        return False
                except TimeoutError:
                    continue
                finally:
                    bell.setblocking(False)
            return False

    @contextmanager
    def _one_more(self) -> Any:
        self.readers.add(threading.get_ident())
        self.most = max(self.most, len(self.readers))
        try:
            yield
        finally:
            self.readers.discard(threading.get_ident())


class Host:
    """Takes what is read: a waiter that has ended, several, or nothing of interest."""

    def __init__(self) -> None:
        self.lock = OwnedLock()
        self.pipe = Pipe()
        self.election = Election(self.lock, self.pipe, self)
        self.at: float | None = None
        self.turns = 0
        self.failures: list[OSError] = []
        self.taken = threading.Event()

    def take(self, data: Any, failure: OSError | None) -> bool:
        assert self.lock.is_owned()
        if failure is not None:
            self.failures.append(failure)
        for waiter in data or ():
            self.election.settle(waiter, "ended")
        self.taken.set()
        return data is None

    def turn(self) -> None:
        assert self.lock.is_owned()
        self.turns += 1

    def next_timeout(self) -> float | None:
        return self.at

    def tidy(self) -> None:
        assert self.lock.is_owned()


@contextmanager
def waiting(host: Host, *waiters: Waiter) -> Any:
    """Let a thread wait for each; all of them have to end."""
    threads = [threading.Thread(target=host.election.wait, args=(waiter,)) for waiter in waiters]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    assert host.election.reader is None
    assert not host.election.sleepers
    assert not host.lock.is_owned()


def until(true: Callable[[], Any]) -> None:
    deadline = threading.Event()
    for _ in range(int(LONG / 0.001)):
        if true():
            return
        deadline.wait(0.001)
    raise AssertionError("it did not come to that")


@pytest.fixture
def host() -> Any:
    host = Host()
    yield host
    host.election.close()


def test_thread_that_waits_alone_reads(host: Host) -> None:
    waiter = Waiter()
    host.pipe.queue.put([waiter])
    host.election.wait(waiter)
    assert waiter.event == "ended"
    assert host.election.reader is None


def test_event_that_is_there_needs_no_reading(host: Host) -> None:
    waiter = Waiter()
    waiter.event = "ended"
    host.election.wait(waiter)
    assert host.pipe.most == 0


def test_one_thread_reads_for_all_and_hands_on_when_its_own_wait_is_over(host: Host) -> None:
    waiters = [Waiter() for _ in range(5)]
    with waiting(host, *waiters):
        until(lambda: host.election.reader and len(host.election.sleepers) == 4)
        reader = host.election.reader
        others = [waiter for waiter in waiters if waiter is not reader]
        host.pipe.queue.put(others[:2])
        until(lambda: len(host.election.sleepers) == 2)
        assert host.election.reader is reader
        host.pipe.queue.put([reader])
        until(lambda: host.election.reader not in (None, reader))
        host.pipe.queue.put(others[2:])
    assert all(waiter.event == "ended" for waiter in waiters)
    assert host.pipe.most == 1


def test_reader_that_is_settled_by_another_thread_is_rung_for(host: Host) -> None:
    waiter = Waiter()
    with waiting(host, waiter):
        until(lambda: host.election.polling == POLLIN)
        with host.lock.lock:
            host.election.settle(waiter, "given up")
    assert waiter.event == "given up"


def test_failure_goes_to_the_host_and_the_reader_reads_on(host: Host) -> None:
    waiter = Waiter()
    host.pipe.queue.put(ConnectionResetError(104, "reset"))
    host.pipe.queue.put([waiter])
    host.election.wait(waiter)
    assert [str(failure) for failure in host.failures] == ["[Errno 104] reset"]


def test_what_is_no_failure_of_the_socket_ends_the_wait_and_leaves_the_lock_free(
    host: Host,
) -> None:
    first, second = Waiter(), Waiter()
    host.pipe.queue.put(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        host.election.wait(first)
    assert host.election.reader is None
    assert not host.lock.is_owned()
    host.pipe.queue.put([second])
    host.election.wait(second)
    assert first.event is None


def test_interrupted_reader_hands_on(host: Host) -> None:
    first, second = Waiter(), Waiter()
    raised: list[BaseException] = []

    def interrupted() -> None:
        try:
            host.election.wait(first)
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=interrupted)
    thread.start()
    until(lambda: host.election.reader is first)
    with waiting(host, second):
        until(lambda: host.election.sleepers)
        host.pipe.queue.put(KeyboardInterrupt())
        thread.join(LONG)
        until(lambda: host.election.reader is second)
        host.pipe.queue.put([second])
    assert len(raised) == 1


def test_time_that_is_over_ends_a_read_with_a_limit(host: Host) -> None:
    waiter = Waiter()
    with host.lock.lock:
        host.election.read(waiter, 0.0)
    assert waiter.event is None
    assert host.turns == 0


def test_reader_does_what_is_due_while_nothing_arrives(host: Host) -> None:
    waiter = Waiter()
    host.at = 0.0  # long ago
    with waiting(host, waiter):
        until(lambda: host.turns > 2)
        host.pipe.queue.put([waiter])


def test_bytes_to_write_are_rung_for(host: Host) -> None:
    waiter = Waiter()
    with waiting(host, waiter):
        until(lambda: host.election.polling == POLLIN)
        waits = host.pipe.waits
        with host.lock.lock:
            host.election.ring_for_writing()
        until(lambda: host.pipe.waits > waits)
        host.pipe.queue.put([waiter])


def test_without_a_descriptor_for_the_bell_the_reader_looks_again_by_itself(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("socket.socketpair", refused)
    waiter = Waiter()
    with waiting(host, waiter):
        until(lambda: host.turns > 2)
        with host.lock.lock:
            host.election.settle(waiter, "given up")


def test_any_number_of_threads_each_get_their_own_event(host: Host) -> None:
    waiters = [Waiter() for _ in range(64)]
    with waiting(host, *waiters):
        for waiter in reversed(waiters):
            host.pipe.queue.put([waiter])
    assert all(waiter.event == "ended" for waiter in waiters)
    assert host.pipe.most == 1
