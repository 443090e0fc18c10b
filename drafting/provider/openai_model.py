"""A model behind OpenAI's Chat Completions wire, as OpenAI, Azure, vLLM, Ollama and llama.cpp speak it.

`ChatOpenAI` builds the request, and its own client sends it. The reply is read as raw lines and decoded with orjson: at
40 streams a token takes 47 µs of CPU this way, and 420 µs through the client's own event objects.
"""

import asyncio
import errno
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any, cast
from urllib.parse import parse_qsl, urljoin, urlsplit, urlunsplit

import aiohttp
import httpx2
import openai
import orjson
from langchain_core.messages import BaseMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from chat import Finished
from chat.refusals import OVERLOADED
from drafting.context.give_back import Demands, give_back, source_of
from drafting.context.normal_form import normal_form
from drafting.deltas import HeaderError, Hear, ModelError, ProxyError, Reported
from drafting.provider.endpoint import OF_FIRST, Variables
from drafting.provider.errors import provider_error
from drafting.provider.model_check import Answer
from drafting.provider.tap import Body, Path
from drafting.provider.wire import ReplyDecoder
from telemetry.logs import NO_ORIGIN, kind, origin_of
from telemetry.tracing import ModelCall

log = logging.getLogger("draftstream.model")

CONNECT_TIMEOUT_S = 5.0  # three attempts fit into MODEL_FIRST_TOKEN_TIMEOUT_S
RETRY_AFTER_S = 5.0  # the longest Retry-After that is waited for; beyond it a person is better served by an error
BODY_END_S = 1.0  # for the rest of a body behind the reply's end: its usage, and the sign that it is over
LONGEST_ANSWER = 2**23  # bytes of a list of models; the longest known has about 2**20
NO_KEY = "none"  # the client insists on a key; it is not sent
UNREADABLE_PROXY = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY of the environment can't be read"
HEADER_VARIABLES = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
DEFAULT_BASE_URL = "https://api.openai.com/v1"
NOTHING: Mapping[str, str] = {}
WITH_USAGE: Mapping[str, Any] = {"stream_options": {"include_usage": True}}


class OpenAIModel:
    """The model of that name. `base_url` may carry a query (Azure's `api-version`). The caller limits the time.

    The settings alone say where the requests go. ChatOpenAI would also obey OPENAI_API_BASE, OPENAI_PROXY and
    LANGSMITH_GATEWAY, and its client would follow a redirect with the whole prompt. Raises ProxyError and HeaderError.
    """

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None,
        base_url: str | None,
        headers: Mapping[str, str] = NOTHING,
        query: Mapping[str, str] = NOTHING,
        parameters: Mapping[str, Any] = WITH_USAGE,
        variables: Variables = OF_FIRST,
        on_reply: Callable[[Path], None] = lambda _: None,
        connection: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.name = name
        self.variables = variables
        self._parameters = parameters  # of each request, beside the messages and the tools
        self._headers = httpx2.Headers(headers)
        self._sends_key = api_key is not None
        self._on_reply = on_reply  # is called with the path of each reply's body
        self._connection = connection  # is entered while the body of a reply arrives
        self._logged: set[Path] = set()
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S)
        try:
            self._http = openai.DefaultAioHttpClient(
                timeout=timeout,
                follow_redirects=False,
                event_hooks={"request": [self._put_headers], "response": [self._bound_retry_after]},
            )
        except (ValueError, httpx2.InvalidURL):  # its text has the proxy's password
            raise ProxyError(UNREADABLE_PROXY) from None
        # ChatOpenAI would make a client for calls without asyncio, which reads the proxies of the environment anew, and
        # fails for one that this model does not go through.
        self._unused = httpx2.Client(trust_env=False)
        url, in_url = _split_query(base_url or DEFAULT_BASE_URL)
        self._chat = ChatOpenAI(
            model=name,
            api_key=SecretStr(api_key or NO_KEY),
            base_url=url,
            default_query={**in_url, **query} or None,
            http_async_client=self._http,
            http_client=self._unused,
            http_socket_options=(),  # else it warns that a proxy is passed by
            openai_proxy=None,
            timeout=timeout,  # without it ChatOpenAI switches the HTTP client's own off
            temperature=None,  # for o1 it would choose one, and `named` would take that over
            use_responses_api=False,
            stream_usage=True,
        )
        _check_headers(self._chat.root_async_client.default_headers)
        self.base_url = str(self._chat.root_async_client.base_url).rstrip("/")
        self.origin = origin_of(self.base_url)
        self._source = source_of(self.base_url, name)
        self._demands = Demands()
        self._in_thought = False  # its replies begin in its thinking, without a mark
        self.proxy = self._proxy()  # its origin, if the client goes through one to the model

    def _proxy(self) -> str | None:
        transport = self._http._transport_for_url(httpx2.URL(self.base_url))  # noqa: SLF001  # the client's own decision
        proxy: httpx2.Proxy | None = getattr(transport, "proxy", None)
        if proxy is None:
            return None
        if proxy.url.scheme not in ("http", "https"):
            raise ProxyError(
                f"it can't reach the model through a {proxy.url.scheme} proxy: set HTTPS_PROXY to an http:// one, or "
                "NO_PROXY to the model's host"
            )
        if (origin := origin_of(str(proxy.url))) == NO_ORIGIN:
            raise ProxyError(UNREADABLE_PROXY)
        return origin

    def __repr__(self) -> str:
        return f"<OpenAIModel {self.name}>"

    def named(self, name: str) -> "OpenAIModel":
        """Another model of the same endpoint, through the same client, which this one closes."""
        other = copy(self)
        other._be(name)  # noqa: SLF001  # of this class
        return other

    def _be(self, name: str) -> None:
        """The opaque fields of one model are not another one's, also at the same address."""
        self.name = name
        self._chat = self._chat.model_copy(update={"model_name": name})
        self._source = source_of(self.base_url, name)
        self._demands = Demands()

    async def aclose(self) -> None:
        self._unused.close()
        await self._http.aclose()

    async def get(self, url: str) -> Answer:
        """GET once, as a chat's request would go: with the key, the query, the proxy, and without a redirect.

        The caller limits the time. `url` has the origin of `base_url`, as the key goes with it. Raises ModelError.
        """
        client: openai.AsyncOpenAI = self._chat.root_async_client
        try:
            opened = await client.get(
                url,
                cast_to=httpx2.Response,
                options={"max_retries": 0, "security": {"bearer_auth": True}},
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
        except openai.APIStatusError as error:
            return Answer(url, error.status_code, error.response.content)
        except openai.APIConnectionError as error:
            raise _unreachable(error) from error
        response = cast("httpx2.Response", opened)
        body = bytearray()
        async with aclosing(response):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    break
        return Answer(url, response.status_code, bytes(body))

    async def _put_headers(self, request: httpx2.Request) -> None:
        """In place of the client's own: it would send a header twice that is written in other capitals.

        Without a key no made-up one is sent. Azure, for one, would look at it before the `api-key`.
        """
        if not self._sends_key:
            request.headers.pop("Authorization", None)
        request.headers.update(self._headers)

    async def _bound_retry_after(self, response: httpx2.Response) -> None:
        """Without this the client waits up to two minutes, silently, if the provider asks for it."""
        asked = self._chat.root_async_client._parse_retry_after_header(response.headers)  # noqa: SLF001  # a date, too
        if asked is not None and asked > RETRY_AFTER_S:
            response.headers["x-should-retry"] = "false"

    async def reply(
        self, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], hear: Hear, *, may_call: bool = True
    ) -> Finished:
        """Call `hear` with the deltas of each arrival; returns how the reply ended. Raises ModelError."""
        with ModelCall(self.name, self.base_url) as call:
            try:
                with call.current():
                    parameters = _tool_parameters(tools, may_call=may_call)
                    body = Body(await self._post(messages, parameters, call.headers))
                async with aclosing(body):
                    self._note_path(body)
                    decoder = ReplyDecoder(self._source, in_thought=self._in_thought)
                    with self._connection():
                        finished = await _read(body, decoder, hear)
                    self._in_thought = decoder.in_thought
                    call.finished(finished)
                    return finished
            except openai.APIError as error:
                raise _own_fault(error) or _model_error(error, self.variables) from error
            except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
                raise _own_fault(error) or ModelError(
                    "model_disconnected",
                    "The connection to the model broke off; you can send the message again.",
                    retryable=True,
                ) from error

    def _note_path(self, body: Body) -> None:
        """Count the path, and log it at its first reply: usually one line a process."""
        self._on_reply(body.path)
        if body.path not in self._logged:
            self._logged.add(body.path)
            if body.not_tapped is None:
                log.info("model replies are read in the connection's callback (path: tap, the fast one)")
            else:
                log.warning("model replies are iterated (path: iterator, the slow one): %s", body.not_tapped)

    def payload(
        self, messages: Sequence[BaseMessage], parameters: Mapping[str, Any]
    ) -> tuple[dict[str, Any], set[str]]:
        """The body of a request, and the names of the opaque fields in it, which ChatOpenAI would drop."""
        form = normal_form(messages)
        # Private, but every call of ChatOpenAI goes through it, and the version is pinned.
        payload: dict[str, Any] = self._chat._get_request_payload(  # noqa: SLF001
            form, stream=True, **parameters
        )
        payload |= self._parameters  # behind ChatOpenAI, which renames some
        return payload, give_back(payload["messages"], form, self._source, self._demands)

    async def _post(
        self, messages: Sequence[BaseMessage], parameters: Mapping[str, Any], headers: Mapping[str, str]
    ) -> httpx2.Response:
        """Send the request, and once more for each opaque field that the provider asks for, or refuses."""
        while True:
            payload, opaque = self.payload(messages, parameters)
            try:
                return await self._send(payload, headers)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if (name := self._demands.learn(str(error.body), opaque)) is None:
                    raise
                log.info("the model's provider refused a request for its %s; it is sent again accordingly", name)

    async def _send(self, payload: Mapping[str, Any], headers: Mapping[str, str]) -> httpx2.Response:
        """The client's own request, with its retries and errors. The body is not read yet.

        `chat.completions.create` would spend a third of its time on validating every field.
        """
        client: openai.AsyncOpenAI = self._chat.root_async_client
        response = await client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=orjson.dumps(payload),
            options={"headers": {**headers, "Content-Type": "application/json"}, "security": {"bearer_auth": True}},
            stream=True,
            stream_cls=openai.AsyncStream[Any],
        )
        return cast("httpx2.Response", response)


def _tool_parameters(tools: Sequence[Mapping[str, Any]], *, may_call: bool) -> dict[str, Any]:
    """OpenAI refuses an empty list of tools, and a choice without tools."""
    if not tools:
        return {}
    return {"tools": list(tools)} if may_call else {"tools": list(tools), "tool_choice": "none"}


async def _read(body: Body, decoder: ReplyDecoder, hear: Hear) -> Finished:
    """Read the body to the end of the reply, which may come long before the body's: that end is not waited for."""
    loop = asyncio.get_running_loop()

    def take(data: bytes) -> bool:
        if (deltas := decoder.feed(data)) is not None:
            hear(deltas)
        if decoder.over and (deltas or end.when() is None):
            end.reschedule(loop.time() + BODY_END_S)
        return decoder.done

    try:
        async with asyncio.timeout(None) as end:
            await body.feed(take)
            if not decoder.failed:
                # The rest of the body has usually arrived. Unless it is read, the connection can't be used again.
                end.reschedule(loop.time() + BODY_END_S)
                await body.skip()
    except (httpx2.HTTPError, aiohttp.ClientError, OSError):
        if not decoder.done:  # an event at the end may lack its empty line
            hear(decoder.feed(b"") or ())
        if not decoder.over:
            raise
    try:
        return decoder.finished()
    except ModelError as error:
        raise _with_type(error, body.content_type) from error.__cause__


def _check_headers(headers: Mapping[str, object]) -> None:
    """Some are from variables that the client reads itself. One that it can't send would fail each run."""
    for name, value in headers.items():
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            variable = HEADER_VARIABLES.get(name, "OPENAI_CUSTOM_HEADERS")
            raise HeaderError(f"{variable} must be visible ASCII characters, as it is sent as a header")


def _split_query(base_url: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(query="")), dict(parse_qsl(parts.query))


LONGEST_CHAIN = 8  # of causes
LONGEST_RETRY_AFTER_S = 30 * 86_400
OWN_FAULTS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def _own_fault(error: BaseException | None) -> ModelError | None:
    """The failure of a connection for which this process or machine lacked the means: the model is not to blame."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in OWN_FAULTS):
            return ModelError("overloaded", OVERLOADED, retryable=True)
        error = error.__cause__ or error.__context__
    return None


UNREACHABLE = "The model can't be reached; please try again in a moment."
NOT_TRUSTED = "The certificate of the model's address is not valid; the operator must see to it."


def _model_error(error: openai.APIError, variables: Variables) -> ModelError:
    if not isinstance(error, openai.APIStatusError):
        return _unreachable(error) if isinstance(error, openai.APIConnectionError) else provider_error(error.body)
    if httpx2.codes.is_redirect(error.status_code):
        return _redirected(error, variables)
    try:
        body: object = error.response.content
    except httpx2.StreamError:  # the body broke off
        body = error.body
    return provider_error(body, error.status_code, retry_after_s=_retry_after_s(error.response))


def _unreachable(error: openai.APIConnectionError) -> ModelError:
    """No answer: the log gets the kinds of the errors that led to it."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < LONGEST_CHAIN:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    reported = Reported(None, [kind(each).replace(" ", "_") for each in causes[1:]], "")
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in causes):
        return ModelError("model_unreachable", NOT_TRUSTED, retryable=False, reported=reported)
    return ModelError("model_unreachable", UNREACHABLE, retryable=True, reported=reported)


def _retry_after_s(response: httpx2.Response) -> float | None:
    """None for a date, which few providers send."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < LONGEST_RETRY_AFTER_S else None


def _with_type(error: ModelError, content_type: str) -> ModelError:
    """The error of a body that began with status 200. Where it is no stream, its type is most of the cause."""
    if not content_type.startswith("text/event-stream"):
        reported = error.reported or Reported(200, (), "")
        error.reported = replace(reported, content_type=content_type.partition(";")[0])
    return error


def _redirected(error: openai.APIStatusError, variables: Variables) -> ModelError:
    """A chat completion is never redirected by a provider, so the address is wrong, or somebody stands in between."""
    try:
        target = origin_of(urljoin(str(error.request.url), error.response.headers.get("location", "")))
    except ValueError:
        target = NO_ORIGIN
    log.warning(
        "the model's address redirects (%d) to %s, and the service follows no redirect: correct %s",
        error.status_code,
        target,
        variables.base_url,
    )
    return ModelError(
        "model_unreachable", "The model's address leads elsewhere; the operator must correct it.", retryable=False
    )
