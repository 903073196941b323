"""What the server refuses, how it stays bounded, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.server.process import Server, image, multipart


def check_problem(answer, status: int) -> str:
    """Assert that an answer is a problem of a status; returns its detail."""
    assert answer.status == status, answer.body[:300]
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status and problem["title"] and problem["detail"] == problem["error"]
    return problem["detail"]


def raw(server: Server, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request has been sent, or its beginning."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    return connection


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that says that it has so many pixels, and has none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = image(64, 64)
UNUSABLE = {
    "text": b"hello, this is no image",
    "truncated": WHOLE[: len(WHOLE) // 2],
    "header alone": WHOLE[:40],
    "no pixels": header_only_png(32, 32),
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_images_that_cannot_be_used(server, name):
    check_problem(server.translate(UNUSABLE[name]), 422)


@pytest.mark.parametrize("side", [5000, 20000, 2_000_000_000])
def test_bombs_are_refused_before_they_are_decoded(server, side):
    started = time.monotonic()
    answer = server.translate(header_only_png(side, side))
    check_problem(answer, 413 if side == 5000 else 422)
    assert time.monotonic() - started < 1


def test_sizes_that_are_too_large(server):
    for query in ("?size=8000", "?size=99999"):
        check_problem(server.translate(image(), query), 413 if "8000" in query else 422)
    check_problem(server.translate(image(), "?size=33"), 422)
    check_problem(server.translate(image(33, 33), "?pair=AtoB"), 422)


def test_malformed_requests(server):
    for query in ("?fit=crop", "?size=0", "?size=-1", "?size=1x2x3", "?nonsense=1", "?fit=pad&fit=pad", "?format=gif"):
        assert "expected" in check_problem(server.translate(image(), query), 400)
    check_problem(server.translate(b""), 400)
    check_problem(server.translate(bytes(20 << 20), "?fit=crop"), 400)  # most clients send all before they read
    check_problem(server.translate(b"x", Content_Type="multipart/form-data"), 400)
    check_problem(server.translate(b"x", Content_Type="multipart/form-data; boundary=edge"), 400)
    body, form = multipart({"x.png": image()})
    check_problem(server.translate(body[:-20], Content_Type=form), 400)
    check_problem(server.translate(multipart({}, fit="pad")[0], Content_Type=form), 400)
    twice = multipart({"a/x.png": image(), "b/x.png": image()})[0]
    check_problem(server.translate(twice, Content_Type=form), 400)
    many = multipart({str(i): b"" for i in range(300)})[0]
    check_problem(server.translate(many, Content_Type=form), 400)


def test_other_addresses_methods_and_types(server):
    check_problem(server.ask("GET", "/nothing"), 404)
    check_problem(server.ask("POST", "/models/none/translate", image()), 404)
    wrong = server.ask("GET", "/translate")
    assert "POST" in check_problem(wrong, 405) and wrong.headers["Allow"] == "POST"
    check_problem(server.translate(image(), Content_Type="text/plain"), 415)
    check_problem(server.translate(image(), Content_Encoding="gzip"), 415)


def test_a_body_needs_a_length(server):
    with raw(server, "POST /translate HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 411")
    with raw(server, "POST /translate HTTP/1.1\nHost: localhost") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 411")


def test_a_body_that_is_too_large_is_refused_before_it_comes(server):
    head = f"POST /translate HTTP/1.1\nHost: localhost\nContent-Length: {1 << 40}"
    with raw(server, head) as connection:
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()
        while connection.recv(4096):
            pass


def test_what_is_no_http(server):
    for junk in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /translate HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(junk + b"\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    assert server.translate(image()).status == 200


def test_a_slow_sender_times_out(models):
    with Server(models, "--body-timeout", "0.5") as server:
        head = "POST /translate HTTP/1.1\nHost: localhost\nContent-Length: 1000"
        with raw(server, head, b"some") as connection:
            started = time.monotonic()
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408") and 0.4 < time.monotonic() - started < 3
            while connection.recv(4096):
                pass
        assert server.metric("pix2pix_held_bytes") == 0


def test_connections_that_do_not_ask_or_read_end(models):
    faster = "from pix2pix.server import run; run.IDLE_SECONDS = 0.5\n"
    with Server(models, before=faster) as server:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
            silent.sendall(b"GET /v2 HTTP/1.1\r\nHost: local")
            assert silent.recv(4096) == b""
        assert 0.3 < time.monotonic() - started < 5
        content = image()
        head = "POST /translate?size=1536&format=bmp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        asked = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        with socket.socket() as slow, socket.socket() as stuck:
            for connection in (slow, stuck):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                connection.settimeout(20)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(asked)
            size, started = 3 * 1536**2, time.monotonic()
            stuck.recv(1)
            assert server.metric("pix2pix_held_bytes") > size, "what has not been read counts"
            assert read_all(slow, pause=0.01) > size and time.monotonic() - started > 0.6
            server.wait_for("pix2pix_held_bytes", 0)
            assert read_all(stuck) < size


def read_all(connection: socket.socket, pause: float = 0) -> int:
    """How many bytes come until the connection ends."""
    count = 0
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 18):
            count += len(piece)
            time.sleep(pause)
    return count


def test_a_full_queue_answers_at_once(models):
    with Server(models, "--max-queue", "2", slow=0.6) as server, ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.translate, image(seed=0))
        server.wait_for("pix2pix_batch_images_count", 1)
        waiting = [pool.submit(server.translate, image(seed=i)) for i in (1, 2)]
        server.wait_for("pix2pix_queue_images", 2)
        started = time.monotonic()
        refused = server.translate(image(seed=3))
        assert time.monotonic() - started < 0.5
        check_problem(refused, 503)
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.ask("GET", "/v2/health/ready").status == 200
        assert [each.result().status for each in (first, *waiting)] == [200] * 3
        assert server.translate(image(seed=3)).status == 200
        too_many, form = multipart({f"{i}.png": image() for i in range(3)})
        check_problem(server.translate(too_many, Content_Type=form), 400)


def test_memory_of_all_requests_is_bounded(models):
    with Server(models, "--max-bytes", "2M", slow=0.3) as server, ThreadPoolExecutor(8) as pool:
        check_problem(server.translate(image(512, 512), "?fit=pad"), 413)
        jobs = [pool.submit(server.translate, image(128, 128, i), "?fit=pad") for i in range(6)]
        statuses = sorted(job.result().status for job in jobs)
        assert set(statuses) == {200, 503}
        assert server.metric("pix2pix_held_bytes") == 0
        assert server.translate(image(128, 128), "?fit=pad").status == 200


def test_images_for_which_memory_does_not_suffice(models):
    with Server(models, "--memory", "50M", "--fit", "pad") as server:  # less than Python and the model take
        assert "would fit" in check_problem(server.translate(image(1024, 1024)), 413)
        tensor = {"name": "input", "datatype": "UINT8", "shape": [1, 1024, 1024, 3]}
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 3 << 20}}]}).encode()
        body, length = head + bytes(3 << 20), {"Inference_Header_Content_Length": str(len(head))}
        assert "would fit" in check_problem(server.ask("POST", "/v2/models/colour/infer", body, **length), 413)
        assert server.translate(image()).status == 200


def test_the_work_of_clients_that_go_is_dropped(models):
    with Server(models, slow=1.0) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.translate, image(seed=0))
        server.wait_for("pix2pix_batch_images_count", 1)
        content = image(seed=1)
        head = f"POST /translate HTTP/1.1\nHost: localhost\nContent-Length: {len(content)}"
        gone = [raw(server, head, content) for _ in range(5)]
        server.wait_for("pix2pix_queue_images", 5)
        half = raw(server, head, content[:100])
        for connection in (*gone, half):
            connection.close()
        server.wait_for("pix2pix_queue_images", 0)
        assert server.metric("pix2pix_dropped_images_total") == 5
        assert first.result().status == 200
        assert server.metric("pix2pix_batch_images_count") == 1
        assert server.metric("pix2pix_held_bytes") == 0


def test_a_computation_that_nobody_waits_for_is_given_up(models):
    with Server(models, slow=20.0) as server:
        content = image()
        head = f"POST /translate HTTP/1.1\nHost: localhost\nContent-Length: {len(content)}"
        with raw(server, head, content):
            server.wait_for("pix2pix_batch_images_count", 1)
        server.wait_for("pix2pix_dropped_images_total", 1)
        server.wait_for("pix2pix_held_bytes", 0)
        code, _ = server.end()
        assert code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_requests_finish(models, number):
    with Server(models, slow=0.4) as server, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(server.translate, image(32, side, seed=1)) for side in (32, 64)]
        server.wait_for("pix2pix_batch_images_count", 1)
        idle = server.connect()
        idle.request("GET", "/v2")
        idle.getresponse().read()
        for _ in range(2 if number == signal.SIGTERM else 1):
            server.process.send_signal(number)
            time.sleep(0.05)
        assert [job.result().status for job in jobs] == [200, 200]
        code, err = server.end()
        assert code == 0 and "Traceback" not in err
        with pytest.raises(OSError):
            server.ask("GET", "/v2")


def test_grace_ends(models):
    with Server(models, "--grace", "0.5", slow=20) as server:
        content = image()
        head = f"POST /translate HTTP/1.1\nHost: localhost\nContent-Length: {len(content)}"
        with raw(server, head, content), raw(server, head, content[:50]):
            server.wait_for("pix2pix_batch_images_count", 1)
            started = time.monotonic()
            code, _ = server.end()
            assert code == 0 and time.monotonic() - started < 5


def test_many_idle_connections_do_not_stop_others(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    assert server.translate(image()).status == 200
    for connection in idle:
        connection.close()


def test_health_answers_while_images_are_computed(server):
    slowest, stop = 0.0, threading.Event()

    def load() -> None:
        while not stop.is_set():
            assert server.translate(image(256, 256), "?fit=pad").status == 200

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(load) for _ in range(4)]
        for _ in range(30):
            started = time.monotonic()
            assert server.ask("GET", "/v2/health/ready").status == 200
            slowest = max(slowest, time.monotonic() - started)
        stop.set()
        for job in jobs:
            job.result()
    assert slowest < 1


def test_logs_have_one_line_for_each_request(models):
    with Server(models) as server:
        server.translate(image(), "?fit=pad&x=%0a%1b[31m")
        server.ask("GET", "/v2/%0d%0ainjected")
        _, err = server.end()
    lines = err.splitlines()
    assert len(lines) == 2 and "POST /translate 400" in lines[0] and "\x1b" not in err
    assert "127.0.0.1 GET /v2/%0d%0ainjected 404" in lines[1]


def test_io_of_bytes(server):  # a body of many pieces
    content = image(300, 300)
    connection = server.connect()
    connection.request("POST", "/translate", io.BytesIO(content), {"Content-Length": str(len(content))})
    assert connection.getresponse().read() == server.translate(content).body
    connection.close()
