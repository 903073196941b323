"""Who may ask: hosts, origins, tokens, and what no request reaches."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from pix2pix.cli import main
from tests.server.process import ROOT, Server, image
from tests.server.test_limits import check_problem, raw

is_loopback = pytest.importorskip("pix2pix.server.access").is_loopback

OWN = ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "[::1]", "localhost:8000", "[::1]:8000"]
FOREIGN = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "",
    "10.0.0.1",
    "[::2]",
    "[",
    "a@b:c",
    "*",
]


@pytest.mark.parametrize("host", OWN)
def test_own_hosts(server, host):
    assert server.ask("GET", "/v2", Host=host).status == 200


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/v2", "/", "/metrics", "/models"])
def test_foreign_hosts(server, host, path):
    assert "--allow-host" in check_problem(server.ask("GET", path, Host=host), 400)


def test_a_request_without_a_host(server):
    with raw(server, "GET /v2 HTTP/1.0") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_pages_of_other_origins_may_not_use_the_server(server):
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost:1",
        "http://localhost.evil.example",
        "http://[",
        "",
    ):
        answer = server.translate(image(), Origin=origin)
        check_problem(answer, 403)
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert server.translate(image(), Origin=f"http://127.0.0.1:{server.port}").status == 200
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "Access-Control-Allow-Origin" not in server.ask("OPTIONS", "/translate", **preflight).headers


def test_an_origin_that_is_allowed(models):
    options = ["--allow-origin", "https://ours.example", "--allow-host", "our.name", "--token", "s3cret"]
    with Server(models, *options) as server:
        preflight = {
            "Origin": "https://ours.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        answer = server.ask("OPTIONS", "/translate", **preflight)
        assert answer.status == 200 and answer.headers["Access-Control-Allow-Origin"] == "https://ours.example"
        assert "GET" in answer.headers["Access-Control-Allow-Methods"]
        allowed = server.translate(image(), Origin="https://ours.example", Authorization="Bearer s3cret")
        assert allowed.status == 200 and allowed.headers["Access-Control-Allow-Origin"] == "https://ours.example"
        refused = server.translate(image(), Origin="https://evil.example", Authorization="Bearer s3cret")
        assert refused.status == 403 and "Access-Control-Allow-Origin" not in refused.headers
        assert server.ask("GET", "/v2", Host="our.name", Authorization="Bearer s3cret").status == 200
        for wrong in ("", "Bearer", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "Bearer S3CRET", "Bearer \xe9"):
            refused = server.translate(image(), Authorization=wrong)
            check_problem(refused, 401)
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/models", "/metrics", "/openapi.json", "/v2", "/v2/models/colour"):
            assert server.ask("GET", path).status == 401
        for path in ("/v2/health/ready", "/", "/page/app.js", "/page/settings.json"):
            assert server.ask("GET", path).status == 200


def test_security_headers(server):
    for answer in (server.ask("GET", "/models"), server.ask("GET", "/nothing"), server.translate(b"x")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Server" not in answer.headers


PATHS = [
    "/../colour.safetensors",
    "/colour.safetensors",
    "/static/../../colour.safetensors",
    "/page/..%2f..%2fpyproject.toml",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/etc/passwd",
    "/..%5c..%5cetc%5cpasswd",
    "/models/..%2fcolour.safetensors/translate",
    "/v2/models/..%2f..%2fetc%2fpasswd",
    "/page/app.js%00.txt",
    "/page/",
    "/__init__.py",
    "http://127.0.0.1/etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_file_of_the_server_can_be_reached(server, path):
    for method in ("GET", "POST", "PUT", "DELETE"):
        with raw(server, f"{method} {path} HTTP/1.1\nHost: localhost\nContent-Length: 0\nConnection: close") as asked:
            answer = b""
            while piece := asked.recv(65536):
                answer += piece
        assert answer.split(b" ")[1] in (b"404", b"405", b"400"), answer
        assert b"root:" not in answer and b"[project]" not in answer


def test_a_warning_where_everybody_may_ask(server, models):
    assert not any("--token" in line for line in server.lines)
    for options, warns in ((["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--token", "x"], False)):
        with Server(models, *options) as reachable:
            assert any("--token" in line for line in reachable.lines) == warns


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org")))


def test_what_cannot_start(models, monkeypatch, capsys):
    monkeypatch.chdir(models)
    monkeypatch.setattr("uvicorn.Server.run", None)  # a server that starts after all would run for ever

    def start(*argv: str) -> str:
        assert main(["serve", *argv, "--device", "cpu"]) == 2
        return capsys.readouterr().err

    assert "nothing.pth" in start("-m", "nothing.pth")
    assert "empty --token" in start("-m", "colour.safetensors", "--token", "")
    assert "--demo" in start()
    assert "two models" in start("-m", "colour.safetensors", "-m", "colour.safetensors")
    with pytest.raises(SystemExit):
        start("-m", "colour.safetensors", "--allow-origin", "*")
    assert "expected an origin" in capsys.readouterr().err
    assert "multiple" in start("-m", "colour.safetensors", "--size", "33")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another --host or --port" in start("-m", "colour.safetensors", "--port", str(taken.getsockname()[1]))


def test_an_address_of_ipv6(models):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6")
    with Server(models, "--host", "::1") as server:
        assert "http://[::1]:" in server.lines[-1]
        for host, status in ((f"[::1]:{server.port}", b"200"), ("evil.example", b"400")):
            with socket.create_connection(("::1", server.port)) as connection:
                connection.sendall(f"GET /v2 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert connection.recv(4096).split(b" ")[1] == status


def test_without_the_extra(models):
    hidden = "import sys; sys.modules['uvicorn'] = None; from pix2pix.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", hidden, "serve", "-m", "colour.safetensors"]
    done = subprocess.run(command, cwd=models, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'pix2pix[serve]'" in done.stderr
