"""The memory that a server's connection holds for its peer, and what happens at the limit."""

from abc import abstractmethod

from rpc_proto.config import ServerConfig

from .endpoint import Endpoint
from .memory import FREE, Account, Memory
from .states import State
from .timers import Timer

__all__ = ["PATIENCE", "Budgeted"]

PATIENCE = 1.0  # seconds to wait for a peer that is refused as soon as it sends something

_LOOK = 0.25  # seconds between two looks at what is held, while that is much
_WAIT = 1.0  # seconds for which reading stops, before something is refused


class Budgeted(Endpoint):
    """An endpoint that holds no more than its share of the server's memory budget.

    While it holds too much, it stops reading; if that does not help, it drops something.
    """

    __slots__ = ()

    _config: ServerConfig
    _lingers = True

    def _open_account(self, memory: Memory | None) -> None:
        self._account = Account(memory or Memory(self._config.budget), self._config.share)
        self._room = min(self.high_water, FREE)

    @abstractmethod
    def _held(self) -> int:
        """Return how many bytes are held for the peer."""

    @abstractmethod
    def _give_something_up(self, now: float) -> bool:
        """Drop something; return whether reading may go on."""

    def _cover(self, more: int = 0) -> bool:
        """Reserve memory for what is held and `more` bytes; return whether there is enough."""
        account = self._account
        held = self._held()
        covered = account.cover(held + more)
        self._room = min(self.high_water, account.leased - held + self.outbound)
        if self.state is State.CLOSING:
            self._room = 0
        if account.leased > FREE and self.state is not State.CLOSED:
            self._look_soon()
        return covered

    def _look_soon(self) -> None:
        if Timer.MEMORY not in self._timers:
            self._set_timer(Timer.MEMORY, self._now + _LOOK)

    def _balance(self, now: float) -> None:
        """Stop reading while too much is held; if that does not help, drop something."""
        account = self._account
        if self.state is State.CLOSED:
            self._unsent = 0
        covered = self._cover()
        if self.state is State.CLOSED:
            return
        waits = False
        if covered and account.calls <= account.most * 3 // 4:
            account.tight_since = None
        else:
            self._look_soon()
            if account.tight_since is None:
                account.tight_since = now
            waits = now < account.tight_since + _WAIT
            if not waits and not covered:
                waits = not self._give_something_up(now)
        if waits is not account.waits:
            account.waits = waits
            self.version += 1
