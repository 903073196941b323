"""From options to a server that runs until a signal ends it: :func:`serve`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..engines.base import Engine
from ..errors import InputError
from ..factory import make_engine
from ..files.options import ServeOptions
from ..loading import read_model
from .access import is_loopback
from .app import application
from .models import Service

IDLE_SECONDS = 30.0  # within which a connection must say what it wants, and read LEAST_READ of its answer
LEAST_READ = 1 << 20  # bytes, or what is left
ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")
MOST_CONNECTIONS = 1000
BACKLOG = 512


class Listener:
    """Hears how the server starts. All methods do nothing here; subclasses override what they want to hear."""

    def loaded(self, name: str, engine: Engine) -> None:
        """A model is ready."""

    def warned(self, text: str) -> None:
        """Something that the user should know."""

    def listening(self, url: str) -> None:
        """The server accepts requests."""


def serve(options: ServeOptions, listener: Listener | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then answer what has been asked, within ``options.grace`` seconds.

    Raises ValueError, RuntimeError or OSError, with a message for people, if the server cannot start.
    """
    listener = listener or Listener()
    options.engine.check()
    if options.engine.gpu_layers == "auto" and options.engine.plan is None:
        raise InputError("--gpu-layers auto measures a plan: name the file for it with --plan")
    with closing(_socket(options)) as listening, ExitStack() as loaded:  # a port that is taken is said at once
        engines = {name: _load(name, options, listener, loaded) for name, _ in options.models}
        options = replace(options, port=listening.getsockname()[1])
        service = Service(options, engines)
        config = uvicorn.Config(
            application(service),
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=options.grace,  # type: ignore[arg-type]  # asyncio takes fractions, too
        )
        if not is_loopback(options.host) and options.token is None:
            listener.warned(f"everybody who reaches {options.host} can use this server: give a --token")
        host = f"[{options.host}]" if ":" in options.host else options.host
        _Server(config, lambda: listener.listening(f"http://{host}:{options.port}")).run([listening])


def _load(name: str, options: ServeOptions, listener: Listener, loaded: ExitStack) -> Engine:
    model = dict(options.models)[name]
    generator, weights = read_model(model, options.statistics, options.key, options.overrides)
    if not generator.palette:
        generator = replace(generator, palette=options.palette)
    if generator.takes == "labels" and not options.no_instance:
        raise InputError(
            f"model {name!r} takes label maps: --no-instance if it was trained without images of instances; with them, "
            f"it cannot be served"
        )
    engine = loaded.enter_context(closing(make_engine(generator, weights, options.engine, release=True)))
    listener.loaded(name, engine)
    return engine


def _socket(options: ServeOptions) -> socket.socket:
    """A socket that listens where the options say."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{options.host}:{options.port}"
        raise OSError(f"cannot listen on {where} ({error.strerror or error}): give another --host or --port") from None


class _Server(uvicorn.Server):
    """Ends in good order by a signal, and does not raise it again; says when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
        handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup's is
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """Ends connections whose next request does not come, or whose answer is not read.

    uvicorn bounds only how long they may be silent.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        unread = self.transport.get_write_buffer_size()
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._end_or_watch, unread)

    def _end_or_watch(self, unread_before: int) -> None:
        """End the connection if it is idle, or hardly reads: it had ``unread_before`` bytes to read. Else go on."""
        unread = self.transport.get_write_buffer_size()
        is_stuck = max(0, unread_before - LEAST_READ) < unread <= unread_before
        is_idle = not unread and (self.cycle is None or self.cycle.response_complete)
        if is_stuck or is_idle:
            self.transport.abort()  # closing would wait for a client that does not read
        else:
            self._watch()


def log_to(handler: logging.Handler) -> None:
    """Let ``handler`` have the lines of the access log, and what goes wrong in the server."""
    for name, level in (("pix2pix.server.access", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
