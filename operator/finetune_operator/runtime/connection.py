"""How the API server is reached: address, trust, and credentials that are read again while they live."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from finetune_operator.runtime.clock import ServerClock

_REREAD_S = 60.0


@dataclass(slots=True)
class Credentials:
    """A fixed Authorization header, or a token file that Kubernetes replaces every hour."""

    header: str | None = None
    token_file: Path | None = None
    _read_at: float = field(default=float("-inf"), init=False)

    def authorization(self) -> str | None:
        if self.token_file is not None and time.monotonic() - self._read_at > _REREAD_S:
            self.header = f"Bearer {self.token_file.read_text().strip()}"
            self._read_at = time.monotonic()
        return self.header


@dataclass(frozen=True, slots=True)
class Connection:
    """What a session is made from."""

    server: str
    tls: ssl.SSLContext | None
    credentials: Credentials
    user_agent: str = "finetune-operator"
    clock: ServerClock = field(default_factory=ServerClock)
    """Set by every answer, of watches too."""

    @property
    def host(self) -> str:
        return self.server.partition("://")[2]

    def session(
        self, limit: int, response: type[aiohttp.ClientResponse] = aiohttp.ClientResponse
    ) -> aiohttp.ClientSession:
        """A session of at most `limit` connections (0: any number)."""

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            authorization = self.credentials.authorization()
            if authorization is not None:
                request.headers["Authorization"] = authorization
            response = await handler(request)
            self.clock.observe(response.headers.get("Date"))
            return response

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limit, keepalive_timeout=60, ssl=self.tls if self.tls is not None else True
            ),
            headers={"User-Agent": self.user_agent},
            response_class=response,
            middlewares=(authorize,),
        )
