"""The pool of a balanced client: who gets a call, who is dialled, and what may be repeated."""

import random

import pytest

from rpc_discovery import Node, OutlierEjection, View
from rpc_discovery.pool import BalancedCall, Pool
from rpc_proto import (
    CODES,
    CallError,
    DeadlineExceeded,
    HandshakeError,
    ResourceExhausted,
    Unavailable,
)

A, B, C = "tcp://a:1", "tcp://b:1", "tcp://c:1"


def view(*addresses, services=("S",), **more):
    return View([Node(address, services, **more) for address in addresses])


def make(*addresses, now=0.0, connected=True, **settings):
    settings.setdefault("rng", random.Random(1).random)
    pool = Pool(now=now, **settings)
    pool.update(view(*addresses), now)
    if connected:
        for target in pool.targets.values():
            pool.connected(target, now)
    return pool


def call(**options):
    options.setdefault("deadline", None)
    return BalancedCall("S", **options)


def fail(pool, one, error, now=0.0, address=None, **more):
    """Send a call to a node, where it fails; return what the pool says to that."""
    target = pool.targets[address] if address else pool.pick_for(one, now)
    target.begin(now)
    return pool.failed(one, target, error, now, now, **more)


def lost(maybe_executed=True):
    return Unavailable("lost", maybe_executed=maybe_executed)


def picks(pool, count=60, now=0.0, **more):
    return {pool.pick("S", now, **more).node.address for _ in range(count)}


def dial_in_vain(pool, address, now=0.0, error=None):
    target = pool.targets[address]
    pool.dialling(target)
    pool.unreachable(target, error or Unavailable("refused", maybe_executed=False), now, False)


# What may be repeated


@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("code", sorted(CODES))
def test_what_surely_did_not_run_is_repeated_only_if_another_node_may_do_better(code, idempotent):
    error = CallError.of(code, maybe_executed=False)
    again = fail(make(A, B), call(idempotent=idempotent), error) is not None
    assert again is (code in ("unavailable", "resource_exhausted", "unimplemented"))


@pytest.mark.parametrize("code", sorted(CODES))
def test_what_may_have_run_is_repeated_only_if_it_is_idempotent_and_the_node_was_unable(code):
    error = CallError.of(code, maybe_executed=True)
    assert fail(make(A, B), call(idempotent=False), error) is None
    again = fail(make(A, B), call(idempotent=True), error) is not None
    assert again is (code in ("unavailable", "resource_exhausted"))


def test_next_attempt_goes_to_another_node_at_once():
    pool = make(A, B, C)
    one = call(idempotent=True)
    nodes = set()
    for _ in range(2):
        target = pool.pick_for(one, 0.0)
        nodes.add(target)
        target.begin(0.0)
        assert pool.failed(one, target, lost(), 0.0, 0.0) == 0.0
    assert pool.pick_for(one, 0.0) not in nodes
    assert pool.failovers == 2


def test_same_node_is_asked_again_after_a_pause_that_grows():
    pool = make(A, rng=lambda: 0.5, max_attempts=4)
    one = call(idempotent=True)
    assert [fail(pool, one, lost()) for _ in range(4)] == pytest.approx([0.03, 0.06, 0.09, None])


def test_last_attempt_fails_with_what_is_true_of_all_attempts():
    pool = make(A, B)
    one = call(idempotent=True)
    assert fail(pool, one, Unavailable("lost", maybe_executed=True), address=A) is not None
    assert fail(pool, one, Unavailable("refused", maybe_executed=False), address=B) is not None
    error = Unavailable("draining", maybe_executed=False)
    assert fail(pool, one, error, address=A) is None
    assert error.maybe_executed
    assert error.message == (
        "tcp://a:1: draining; before that tcp://a:1: unavailable: lost; "
        "tcp://b:1: unavailable: refused"
    )


def test_answer_of_a_handler_is_left_as_it_is():
    pool = make(A)
    error = CallError.of("not_found", "no such key")
    assert fail(pool, call(idempotent=True), error) is None
    assert error.message == "no such key"


def test_call_that_failed_once_and_was_then_answered_badly_may_have_run():
    pool = make(A, B)
    one = call(idempotent=True)
    fail(pool, one, lost(), address=A)
    error = CallError.of("invalid_argument", "bad", maybe_executed=False)
    assert fail(pool, one, error, address=B) is None
    assert error.maybe_executed


def test_attempts_are_counted():
    pool = make(A, B, C, max_attempts=1)
    assert fail(pool, call(idempotent=True), lost(False)) is None


def test_nothing_is_repeated_after_the_deadline():
    pool = make(A, B)
    assert fail(pool, call(deadline=1.0, idempotent=True), lost(), 0.9) is not None
    one = call(deadline=1.0, idempotent=True)
    target = pool.pick_for(one, 0.9)
    target.begin(0.9)
    assert pool.failed(one, target, lost(), 0.9, 1.0) is None


def test_deadline_that_has_passed_is_said_with_the_attempts_before():
    pool = make(A, B)
    one = call(deadline=1.0, idempotent=True)
    fail(pool, one, lost(), 0.9, address=A)
    with pytest.raises(DeadlineExceeded, match="that tcp://a:1: unavailable: lost") as caught:
        pool.pick_for(one, 1.0)
    assert caught.value.maybe_executed


# The budget


def test_repeating_ends_with_the_budget():
    pool = make(A, B, retry_minimum=1.0, retry_ratio=0.0)
    assert sum(fail(pool, call(idempotent=True), lost()) is not None for _ in range(50)) == 10


def test_calls_that_end_well_fill_the_budget():
    pool = make(A, B, retry_minimum=0.0, retry_ratio=0.5)
    assert fail(pool, call(idempotent=True), lost()) is None
    for _ in range(2):
        target = pool.pick("S", 0.0)
        target.begin(0.0)
        pool.succeeded(target, 0.0, 0.1)
    assert fail(pool, call(idempotent=True), lost()) is not None
    assert fail(pool, call(idempotent=True), lost()) is None


def test_what_no_node_ever_saw_is_not_in_the_budget():
    pool = make(A, B, retry_minimum=0.0, retry_ratio=0.0)
    assert fail(pool, call(), lost(False)) is not None
    assert fail(pool, call(), ResourceExhausted("full", maybe_executed=False)) is None


# Ejection


def test_node_that_fails_five_times_is_ejected_and_returns():
    pool = make(A, B, ejection=OutlierEjection(rng=lambda: 0.0, base=30.0))
    for _ in range(5):
        fail(pool, call(), CallError.of("deadline_exceeded"), 20.0, address=A)
    assert picks(pool, now=20.0) == {B}
    assert picks(pool, now=49.9) == {B}
    assert picks(pool, now=50.1, count=200) == {A, B}


def test_errors_that_handlers_mean_eject_nobody():
    pool = make(A, B)
    for _ in range(20):
        fail(pool, call(), CallError.of("not_found"), address=A)
    assert picks(pool) == {A, B}


def test_calls_that_one_lost_connection_takes_along_count_once():
    pool = make(A, B)
    for number in range(50):
        fail(pool, call(), lost(), address=A, blamed=number == 0)
    assert pool.targets[A].errors == 1
    assert pool.targets[A].in_flight == 0


def test_refusal_does_not_make_a_node_look_fast():
    pool = make(A, B)
    pool.targets[A].begin(0.0)
    pool.succeeded(pool.targets[A], 0.0, 0.5)
    fail(pool, call(), ResourceExhausted("full", maybe_executed=False), 100.0, address=A)
    assert pool.targets[A].latency == 0.5


# Dialling


def test_backoff_of_dialling_grows_to_ten_seconds_and_begins_anew_after_a_success():
    pool = make(A, connected=False, rng=lambda: 0.999999)
    target = pool.targets[A]
    waits = []
    for _ in range(9):
        dial_in_vain(pool, A)
        waits.append(round(target.retry_at, 3))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    pool.connected(target, 0.0)
    dial_in_vain(pool, A)
    assert round(target.retry_at, 3) == 0.1


def test_nodes_that_are_dialled_are_not_waited_for():
    pool = make(A, B, C)
    pool.dialling(pool.targets[A])
    assert picks(pool) == {B, C}
    pool.connected(pool.targets[A], 0.0)
    assert picks(pool) == {A, B, C}


def test_nodes_that_could_not_be_dialled_are_left_alone_for_a_while():
    pool = make(A, B)
    dial_in_vain(pool, A)
    assert picks(pool) == {B}
    assert picks(pool, now=0.2) == {A, B}


def test_node_that_is_dialled_is_better_than_one_that_cannot_be():
    pool = make(A, B, connected=False)
    dial_in_vain(pool, B)
    pool.dialling(pool.targets[A])
    assert picks(pool) == {A}


def test_node_that_was_tried_is_better_than_one_that_cannot_be_dialled():
    pool = make(A, B)
    dial_in_vain(pool, B)
    one = call(idempotent=True)
    assert fail(pool, one, lost(), address=A) is not None
    assert pool.pick_for(one, 0.0).node.address == A


def test_node_that_was_tried_is_better_than_one_that_is_dialled_again():
    pool = make(A, B)
    dial_in_vain(pool, B)
    pool.dialling(pool.targets[B])
    one = call(idempotent=True)
    fail(pool, one, lost(), 5.0, address=A)
    assert pool.pick_for(one, 5.0).node.address == A


def test_when_no_node_can_be_dialled_the_error_says_why():
    pool = make(A, B, connected=False)
    dial_in_vain(pool, A, error=Unavailable("no connection to tcp://a:1: refused"))
    dial_in_vain(pool, B, error=TimeoutError("late"))
    with pytest.raises(Unavailable) as caught:
        pool.pick_for(call(), 0.0)
    assert caught.value.message == (
        "no node of S can be reached: no connection to tcp://a:1: refused; tcp://b:1: late"
    )
    assert not caught.value.maybe_executed


def test_node_that_refuses_the_client_says_so_itself():
    pool = make(A, connected=False)
    dial_in_vain(pool, A, error=HandshakeError("unauthenticated", "wrong token"))
    with pytest.raises(CallError, match="wrong token") as caught:
        pool.pick_for(call(), 0.0)
    assert caught.value.code == "unauthenticated"


def test_errors_of_dials_are_not_kept_alive():
    pool = make(A, connected=False)
    dial_in_vain(pool, A)
    target = pool.targets[A]
    assert not any(
        isinstance(getattr(target, name, None), BaseException)
        for kind in type(target).__mro__
        for name in getattr(kind, "__slots__", ())
    )


def test_old_connections_are_due_for_replacement_up_to_a_fifth_sooner():
    pool = make(*(f"tcp://h{n}:1" for n in range(100)), max_age=100.0)
    due = [target.expires_at for target in pool.targets.values()]
    assert min(due) >= 80.0
    assert max(due) <= 100.0
    assert max(due) - min(due) > 10.0


def test_replacement_that_fails_leaves_the_node_in_service():
    pool = make(A, B, max_age=100.0)
    pool.unreachable(pool.targets[A], Unavailable("refused"), 100.0, True)
    assert pool.targets[A].expires_at == 150.0
    assert picks(pool) == {A, B}


# Views


def test_removed_nodes_are_never_picked():
    pool = make(A, B, C)
    dial_in_vain(pool, B)
    pool.dialling(pool.targets[C])
    removed = pool.update(view(A), 1.0)
    assert {target.node.address for target in removed} == {B, C}
    assert all(target.gone for target in removed)
    assert picks(pool, now=1.0) == {A}
    pool.dialling(removed[0])  # it was on its way
    pool.unreachable(removed[0], lost(), 1.0, False)
    assert picks(pool, now=1.0) == {A}


def test_first_view_has_no_slow_start_and_what_comes_soon_belongs_to_it():
    pool = make(A)
    pool.update(view(A, B), 9.0)
    counts = [pool.pick("S", 9.0).node.address for _ in range(100)]
    assert counts.count(B) == 50


def test_node_that_comes_later_starts_slowly():
    pool = make(A)
    pool.update(view(A, B), 1000.0)
    counts = [pool.pick("S", 1000.0).node.address for _ in range(110)]
    assert 5 <= counts.count(B) <= 15
    counts = [pool.pick("S", 1010.0).node.address for _ in range(100)]
    assert counts.count(B) == pytest.approx(50, abs=1)


def test_empty_first_view_is_not_the_first():
    pool = make()
    pool.update(view(A), 1000.0)
    pool.update(view(A, B), 1005.0)
    counts = [pool.pick("S", 1005.0).node.address for _ in range(100)]
    assert counts.count(B) == 50


def test_no_nodes_at_all():
    with pytest.raises(Unavailable, match="no node offers 'S'"):
        make().pick("S", 0.0)


def test_service_that_nobody_offers():
    pool = make(A)
    with pytest.raises(Unavailable, match="no node offers 'Other'") as caught:
        pool.pick("Other", 0.0)
    assert not caught.value.maybe_executed


def test_node_that_does_not_say_what_it_offers_may_offer_anything():
    pool = make(A)
    pool.update(View([Node(A, ["S"]), Node(B)]), 0.0)
    assert pool.pick("Other", 0.0).node.address == B
    assert picks(pool) == {A, B}


def test_nodes_without_weight_get_nothing():
    pool = make(A)
    pool.update(view(A, weight=0.0), 0.0)
    with pytest.raises(Unavailable, match="no node of S accepts calls"):
        pool.pick("S", 0.0)
    assert pool.pick_for(call(node=A), 0.0).node.address == A


def test_service_that_a_node_offers_later_is_found():
    pool = make(A)
    pool.update(view(A, services=["S", "T"]), 1.0)
    assert pool.pick("T", 1.0).node.address == A


# One node, and keys


def test_call_to_one_node_goes_there_or_nowhere():
    pool = make(A, B)
    one = call(node=A)
    assert pool.pick_for(one, 0.0).node.address == A
    assert fail(pool, one, lost(False)) > 0
    assert pool.pick_for(one, 0.0).node.address == A
    dial_in_vain(pool, A)
    with pytest.raises(Unavailable, match="refused"):
        pool.pick_for(one, 0.0)


def test_address_of_the_one_node_may_be_written_otherwise():
    assert make(A).pick_for(call(node="tcp://a:0001"), 0.0).node.address == A


def test_call_to_a_node_that_is_not_known():
    with pytest.raises(Unavailable, match="no node 'tcp://x:1' is known"):
        make(A).pick_for(call(node="tcp://x:1"), 0.0)
    with pytest.raises(ValueError, match="nonsense"):
        make(A).pick_for(call(node="nonsense"), 0.0)


def keyed(*addresses, **settings):
    return make(*addresses, balancer="consistent_hash", **settings)


def test_keys_stay_with_their_node():
    pool = keyed(A, B, C)
    for number in range(50):
        assert len(picks(pool, 5, key=f"user-{number}")) == 1


def test_call_with_a_key_waits_for_its_node_to_be_dialled_the_first_time():
    pool = keyed(A, B, C)
    owner = pool.pick("S", 0.0, "user")
    pool.dialling(owner)
    assert pool.pick("S", 0.0, "user") is owner


def test_call_with_a_key_does_not_wait_for_a_node_that_is_dialled_again_after_a_failure():
    pool = keyed(A, B, C)
    owner = pool.pick("S", 0.0, "user")
    dial_in_vain(pool, owner.node.address)
    other = pool.pick("S", 0.0, "user")
    assert other is not owner
    pool.dialling(owner)
    assert pool.pick("S", 5.0, "user") is other
    pool.connected(owner, 5.0)
    assert pool.pick("S", 5.0, "user") is owner


def test_failover_of_a_key_goes_to_the_same_second_node():
    pool = keyed(A, B, C)
    seconds = set()
    for _ in range(10):
        one = call(key="user", idempotent=True)
        owner = pool.pick_for(one, 0.0)
        owner.begin(0.0)
        pool.failed(one, owner, lost(False), 0.0, 0.0, blamed=False)
        seconds.add(pool.pick_for(one, 0.0))
    assert len(seconds) == 1


# Hedging


def test_second_node_is_asked_after_what_nearly_all_calls_of_the_method_have_taken():
    pool = make(A, B)
    assert pool.hedge_delay("S.quick") is None
    for _ in range(20):
        pool.observe("S.quick", 0.01)
        pool.observe("S.slow", 5.0)
    assert pool.hedge_delay("S.quick") == pytest.approx(0.01)
    assert pool.hedge_delay("S.slow") == pytest.approx(5.0)


def test_hedge_goes_to_another_node():
    pool = make(A, B)
    one = call()
    first = pool.pick_for(one, 0.0)
    other = pool.hedge(one, 0.0)
    assert other is not None
    assert pool.pick_for(other, 0.0) is not first


def test_one_node_alone_is_not_asked_twice():
    pool = make(A)
    one = call()
    pool.pick_for(one, 0.0)
    assert pool.hedge(one, 0.0) is None


def test_hedges_are_in_the_budget():
    pool = make(A, B, retry_ratio=0.0, retry_minimum=0.1)
    one = call()
    pool.pick_for(one, 0.0)
    assert [pool.hedge(one, 0.0) is not None for _ in range(3)] == [True, False, False]


# Bounds


def test_memory_is_bounded_whatever_services_and_methods_are_asked_for():
    pool = make(A)
    for number in range(12_000):
        with pytest.raises(Unavailable):
            pool.pick(f"X{number}", 0.0)
        pool.observe(f"X.{number}", 0.1)
    assert len(pool._balancers) <= 1
    assert len(pool._delays) <= 10_000
    pool.update(View([Node(A)]), 0.0)
    for number in range(12_000):
        pool.pick(f"X{number}", 0.0)
    assert len(pool._balancers) <= 10_000
    assert len(pool._current) <= 10_000


def test_reasons_of_many_attempts_are_bounded():
    pool = make(A, B, max_attempts=100, retry_minimum=100.0)
    one = call(idempotent=True)
    for _ in range(99):
        assert fail(pool, one, Unavailable("x" * 5000)) is not None
    assert len("".join(one.reasons)) <= 600


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"max_attempts": 0}, "max_attempts must be from 1 to 100, not 0"),
        ({"max_age": 0.5}, "max_age must be from 1 second up, not 0.5"),
        ({"balancer": "best"}, "balancer must be a class or one of"),
        ({"retry_ratio": -1.0}, "ratio and minimum must be numbers from 0 up"),
    ],
)
def test_bad_settings_are_refused(setting, text):
    with pytest.raises(ValueError, match=text):
        Pool(now=0.0, rng=random.random, **setting)
