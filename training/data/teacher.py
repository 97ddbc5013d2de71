"""A teacher model behind an OpenAI-compatible endpoint: a question in, a text out; with retries, waits and a pace."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from drivers.errors import UserError

MAX_BACKOFF_S = 60.0
MAX_TOLD_S = 3600.0
# Wrong key, forbidden, no such model or path: no item can be answered, so nothing more is asked.
HOPELESS = {
    401: "the endpoint refuses the key; set OPENAI_API_KEY",
    403: "the endpoint forbids this; check the key and what it may use",
    404: "no such model or path; check --model, and that --endpoint ends as the server says (vLLM: /v1)",
}
TRANSIENT = {408, 409, 425, 429}  # and every 5xx


@dataclass(frozen=True)
class Endpoint:
    """Where the teacher is and how patiently it is asked.

    Attributes:
        url: base URL, the part before ``/chat/completions``.
        model: the name under which the endpoint serves the teacher.
        requests_per_minute: at most so many requests are started a minute; None for no limit.
        timeout_s: for one answer.
        tries: how often one question is sent before its item is given up, where the endpoint fails.
        backoff_s: wait after the first failure; doubles each time, with jitter, up to `MAX_BACKOFF_S`.
        max_tokens: of one answer.
    """

    url: str
    model: str
    requests_per_minute: float | None = None
    timeout_s: float = 180.0
    tries: int = 6
    backoff_s: float = 1.0
    max_tokens: int = 1024


class NoAnswer(Exception):
    """The endpoint gave no answer to this question; the message says why."""


class Malformed(Exception):
    """The endpoint answered 200 with something that holds no text; the message says what is wrong with it."""


class Pace:
    """When the next request may start: evenly spaced slots, and pauses that the endpoint asked everybody to make."""

    def __init__(self, per_minute: float | None) -> None:
        self.spacing_s = 60.0 / per_minute if per_minute else 0.0
        self.next_s = 0.0
        self.held_until_s = 0.0

    def hold(self, wait_s: float) -> None:
        """Let nobody start before `wait_s` from now."""
        self.held_until_s = max(self.held_until_s, time.monotonic() + wait_s)

    async def turn(self) -> None:
        """Wait for the next free slot."""
        start_s = max(time.monotonic(), self.next_s)
        self.next_s = start_s + self.spacing_s
        while (wait_s := max(start_s, self.held_until_s) - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)


class Teacher:
    """A client of one endpoint. Use as ``async with``: it holds connections.

    Attributes:
        sent: requests started so far.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        import openai

        key = os.environ.get("OPENAI_API_KEY") or "EMPTY"
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY: holds what no HTTP header can carry; set it to the key alone")
        self._openai = openai
        self.endpoint = endpoint
        self.sent = 0
        self._pace = Pace(endpoint.requests_per_minute)
        # The library's own retries would know neither our pace nor our counts.
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=key,
            max_retries=0,
            timeout=endpoint.timeout_s,
        )

    async def __aenter__(self) -> Teacher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, messages: list[dict[str, Any]], temperature: float) -> str:
        """The teacher's text.

        Raises:
            Malformed: an answer came, but no text in it.
            NoAnswer: the endpoint failed `tries` times, or refused this one question.
            UserError: the endpoint refuses everything (wrong key, no such model).
        """
        why = ""
        for attempt in range(self.endpoint.tries):
            await self._pace.turn()
            self.sent += 1
            told_s = None
            try:
                return _text(await self._post(messages, temperature))
            except self._openai.APIStatusError as error:
                told_s = self._judge(error)
                why = f"HTTP {error.status_code}"
            except self._openai.APITimeoutError:
                why = f"no answer in {self.endpoint.timeout_s:g} s"
            except self._openai.APIConnectionError as error:
                why = f"connection: {error.__cause__ or error}"
            if not told_s and attempt + 1 < self.endpoint.tries:  # a wait we were told is part of the pace
                backoff_s = min(self.endpoint.backoff_s * 2**attempt, MAX_BACKOFF_S)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
        raise NoAnswer(f"{why}, {self.endpoint.tries} times")

    async def _post(self, messages: list[dict[str, Any]], temperature: float) -> str:
        """The raw body: the library takes a body that is no completion without a word, so we read it ourselves."""
        answer = await self._client.chat.completions.with_raw_response.create(
            model=self.endpoint.model,
            messages=messages,  # type: ignore[arg-type]
            temperature=temperature,
            max_tokens=self.endpoint.max_tokens,
        )
        return str(answer.text)

    def _judge(self, error: Any) -> float | None:
        """How long a bad status told us to wait, None where it did not; raises where waiting is vain."""
        status = int(error.status_code)
        if status in HOPELESS:
            raise UserError(f"{self.endpoint.url}: HTTP {status}: {HOPELESS[status]}") from None
        if status not in TRANSIENT and status < 500:
            raise NoAnswer(f"HTTP {status}: {str(error.message)[:200]}") from None
        wait_s = retry_after_s(error.response.headers.get("retry-after"), time.time())
        if wait_s is not None and wait_s > MAX_TOLD_S:
            raise UserError(f"{self.endpoint.url}: HTTP {status}: asks to wait {wait_s:.0f} s; run again then")
        if wait_s is not None:
            self._pace.hold(wait_s)
        return wait_s


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3: seconds or a date); None if it is neither."""
    if header is None:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return max(wait_s, 0.0) if wait_s == wait_s else None  # not NaN


def _text(body: str) -> str:
    """The text of a chat completion. Raises Malformed."""
    try:
        choices = json.loads(body)["choices"]
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON") from None
    except (KeyError, TypeError):
        raise Malformed("the body has no choices") from None
    if not isinstance(choices, list) or not choices:
        raise Malformed("the body has no choices")
    try:
        text = choices[0]["message"]["content"]
    except (KeyError, TypeError):
        text = None
    if not isinstance(text, str) or not text.strip():
        raise Malformed("the answer has no content")
    return text
