"""Choosing the next call to run: a shared limit, and turns between connections."""

from collections import OrderedDict

from rpc_proto.connection.server import ServerConnection

from .context import Job

__all__ = ["Lane"]

Queue = OrderedDict[Job, None]


class Lane:
    """A limit that some handlers share, and the calls that wait for one of them to end.

    At most `limit` handlers run at a time, of which one connection may use three quarters, so that
    a single peer never blocks all others. Waiting calls take turns, one per connection. Connections
    that have used up their share, or do not read their answers, are skipped.
    """

    __slots__ = ("_parked", "_turns", "limit", "queued", "running", "running_of", "share")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.share = limit - limit // 4
        self.running = 0
        self.queued = 0
        self.running_of: dict[ServerConnection, int] = {}  # only those that have any
        # A connection whose calls wait is in one of these. While any has turns the limit is
        # reached, or `next` will be asked soon.
        self._turns: OrderedDict[ServerConnection, Queue] = OrderedDict()
        self._parked: dict[ServerConnection, Queue] = {}

    def enter(self, connection: ServerConnection) -> bool:
        """Count a handler that starts now, if it may."""
        if self.running >= self.limit or self._turns:
            return False
        running = self.running_of.get(connection, 0)
        if running >= self.share or connection.outbound >= connection.high_water:
            return False
        if self._parked and connection in self._parked:
            return False
        self.running += 1
        self.running_of[connection] = running + 1
        return True

    def leave(self, connection: ServerConnection) -> None:
        """Count the end of a handler."""
        self.running -= 1
        left = self.running_of[connection] - 1
        if left:
            self.running_of[connection] = left
        else:
            del self.running_of[connection]
        if self._parked:
            self.resume(connection)

    def wait(self, job: Job, connection: ServerConnection, first: bool = False) -> None:
        """Let a call wait, after the others of its connection or before them."""
        queue = self._turns.get(connection) or self._parked.get(connection)
        if queue is None:
            queue = OrderedDict()
            self._line_up(connection, queue)
        queue[job] = None
        if first:
            queue.move_to_end(job, last=False)
        self.queued += 1

    def withdraw(self, job: Job, connection: ServerConnection) -> bool:
        """Remove a call from the queue; return whether it was there."""
        for queues in (self._turns, self._parked):
            queue = queues.get(connection)
            if queue is not None and job in queue:
                del queue[job]
                self.queued -= 1
                if not queue:
                    del queues[connection]
                return True
        return False

    def waits(self, connection: ServerConnection) -> bool:
        """Whether calls of this connection wait."""
        return connection in self._turns or connection in self._parked

    def next(self) -> Job | None:
        """Return the next call that may run now, and count it as running."""
        while self._turns and self.running < self.limit:
            connection, queue = self._turns.popitem(last=False)
            if not self._has_turns(connection):
                self._parked[connection] = queue
                continue
            job, _ = queue.popitem(last=False)
            self.queued -= 1
            self.running += 1
            self.running_of[connection] = self.running_of.get(connection, 0) + 1
            if queue:
                self._line_up(connection, queue)
            return job
        return None

    def resume(self, connection: ServerConnection) -> None:
        """Let the calls of a connection take turns again."""
        queue = self._parked.pop(connection, None)
        if queue is not None:
            self._turns[connection] = queue

    def _line_up(self, connection: ServerConnection, queue: Queue) -> None:
        queues = self._turns if self._has_turns(connection) else self._parked
        queues[connection] = queue

    def _has_turns(self, connection: ServerConnection) -> bool:
        return (
            self.running_of.get(connection, 0) < self.share
            and connection.outbound < connection.high_water
        )
