"""The built-in service that tells whether to send calls here."""

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_proto import ClientConfig, NotFound, ServerConfig
from rpc_proto.service.health import HEALTH, Health


class Store:
    def get(self) -> None: ...


class Hosted:
    def __init__(self) -> None:
        config = ServerConfig(ping_interval=None)
        self.pair = Pair(ClientConfig(ping_interval=None), config).open()
        self.host = Host(self.pair, Store())
        self.draining = False
        self.health = Health(self.host.dispatcher, lambda: self.draining)
        self.host.dispatcher.register(self.health, HEALTH)

    def check(self, *service: str) -> object:
        return self.pair.outcome(self.pair.call("rpc.Health.check", *service))


@pytest.fixture
def hosted() -> Hosted:
    return Hosted()


def test_server_and_registered_services_serve_unless_told_otherwise(hosted: Hosted) -> None:
    assert hosted.check() == hosted.check("") == hosted.check("Store") == "serving"
    assert hosted.health.states() == {"": "serving", "Store": "serving", "rpc.Health": "serving"}


def test_unknown_service_is_not_found(hosted: Hosted) -> None:
    error = hosted.check("Missing")
    assert type(error) is NotFound
    assert "'Missing'" in error.message


def test_one_service_can_be_unwell_by_itself(hosted: Hosted) -> None:
    hosted.health.set("Store", False)
    assert (hosted.check("Store"), hosted.check()) == ("not_serving", "serving")
    hosted.health.set("Store", True)
    assert hosted.check("Store") == "serving"


def test_whole_server_can_be_unwell(hosted: Hosted) -> None:
    hosted.health.set("", False)
    assert (hosted.check(), hosted.check("Store")) == ("not_serving", "serving")


def test_draining_server_serves_nothing(hosted: Hosted) -> None:
    hosted.draining = True
    assert hosted.check() == hosted.check("Store") == "not_serving"
    assert set(hosted.health.states().values()) == {"not_serving"}


def test_health_of_a_service_that_is_not_registered_cannot_be_set(hosted: Hosted) -> None:
    with pytest.raises(ValueError, match="'Missing'"):
        hosted.health.set("Missing", False)


def test_removed_service_is_forgotten(hosted: Hosted) -> None:
    hosted.health.set("Store", False)
    hosted.host.dispatcher.unregister("Store")
    hosted.health.forget("Store")
    assert type(hosted.check("Store")) is NotFound
    hosted.host.dispatcher.register(Store())
    assert hosted.check("Store") == "serving"


def test_only_check_can_be_called_from_outside(hosted: Hosted) -> None:
    names = [name for name in hosted.host.dispatcher.methods if name.startswith(HEALTH)]
    assert names == ["rpc.Health.check"]
