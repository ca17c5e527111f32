"""Web applications call through one client that their threads share, or one for each process."""

import json
import os
import threading
import urllib.request

import pytest

from blocking_driver.support import LONGEST, Echo, Running, pair, serving
from rpc_blocking import Client

# From Python 3.12 on a fork of a process with threads warns; this is about what then happens.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def get(url: str) -> str:
    # No proxy of the environment is to be asked for what runs here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=LONGEST) as answer:
        return answer.read().decode()


def test_threads_of_a_flask_application_share_a_client():
    flask = pytest.importorskip("flask")
    serving_ = pytest.importorskip("werkzeug.serving")
    meeting = threading.Barrier(20, timeout=LONGEST)

    class Work:
        def double(self, value: int) -> int:
            meeting.wait()  # all twenty requests are being served
            return 2 * value

    with pair(Work(), threads=28) as (_, client):  # one connection may have three quarters
        app = flask.Flask("app")

        @app.route("/double/<int:value>")
        def double(value: int) -> str:
            return json.dumps(client.call("Work.double", value, timeout=LONGEST))

        web = serving_.make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{web.server_port}/double"
            requests = [Running(get, f"{url}/{value}") for value in range(20)]
            assert [json.loads(got.result()) for got in requests] == [2 * i for i in range(20)]
        finally:
            web.shutdown()
            thread.join()
            web.server_close()
        assert client.calls_in_flight == 0


def test_workers_that_were_forked_have_clients_of_their_own():
    with serving(Echo()) as (_, address), Client.connect(address) as masters:
        assert masters.call("Echo.echo", "warm") == "warm"

        def work(number: int) -> list[int]:
            with Client.connect(address) as client:
                calls = [Running(client.call, "Echo.echo", number * 100 + i) for i in range(20)]
                return [call.result() for call in calls]

        pipes = []
        for number in range(4):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.write(write, json.dumps(work(number)).encode())
                finally:
                    os._exit(0)
            os.close(write)
            pipes.append((pid, read))
        assert masters.call("Echo.echo", "meanwhile") == "meanwhile"
        for number, (pid, read) in enumerate(pipes):
            with os.fdopen(read) as pipe:
                assert json.load(pipe) == [number * 100 + i for i in range(20)]
            os.waitpid(pid, 0)
