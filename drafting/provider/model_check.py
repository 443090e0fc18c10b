"""One look at the provider's list of models after the start, which warns of a wrong address, key, model or proxy.

A chat would show the same, but to the first person who comes, and not to the operator who has just set the service up.
A server may have no such list, or a list of something else, so only a fact is told, and a doubt is not.
"""

import asyncio
import difflib
import fnmatch
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from drafting.deltas import ModelError
from drafting.provider.endpoint import Variables
from drafting.provider.errors import provider_error
from telemetry.cleared import Cleared

log = logging.getLogger("draftstream.model")

CHECK_TIMEOUT_S = 10.0
NEAR_NAMES = 5
# Ends of addresses that people copy, and that the client adds itself or does not want.
COPIED_END = re.compile(r"/(chat/completions|completions|models|api(/chat|/generate)?)$")


@dataclass(frozen=True, slots=True)
class Answer:
    """The provider's answer to a GET."""

    url: str
    status: int
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON, of whatever shape
        """None for a text or a page."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def models(self) -> Sequence[dict[str, Any]] | None:
        """The entries of a list of models; None if this is none."""
        listed = self.json
        entries = listed.get("data") if isinstance(listed, dict) else listed
        if self.status != 200 or not isinstance(entries, list):
            return None
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


class Provider(Protocol):
    """The provider of a model; see OpenAIModel."""

    name: str
    base_url: str
    origin: str
    proxy: str | None
    variables: Variables

    async def get(self, url: str) -> Answer:
        """Raises ModelError if there is none."""


async def check(model: Provider, names: Mapping[str, str]) -> None:
    """Raises nothing, and takes CHECK_TIMEOUT_S at most. `names`: of the models there, each with its variable."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await _check(model, names)
    except ModelError as error:
        codes = ",".join(error.reported.codes) if error.reported is not None else error.code
        if model.proxy is None:
            log.warning("the model can't be reached at %s (%s)", model.origin, codes)
        else:
            log.warning("the model can't be reached at %s through the proxy %s (%s)", model.origin, model.proxy, codes)
    except TimeoutError:
        log.warning("the model's provider at %s does not answer within %g s", model.origin, CHECK_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  # it is for the log alone, and must not end anything
        log.info("the model could not be checked (%s)", error)


async def _check(model: Provider, names: Mapping[str, str]) -> None:
    answer = await model.get(f"{model.base_url}/models")
    variable = model.variables.base_url
    if answer.models is not None:
        for name, its_variable in names.items():
            _check_name(name, its_variable, answer)
    elif _is_misplaced(answer):
        for base_url in _neighbours(model.base_url):
            if (await model.get(f"{base_url}/models")).models is not None:
                log.warning("%s does not lead to the model's API: set it to %s", variable, base_url)
                return
        if answer.json is None:
            text = "%s may be wrong: GET %s has the status %d and no JSON"
            log.warning(text, variable, answer.url, answer.status)
    else:
        _check_error(answer, model.variables.api_key)


def _is_misplaced(answer: Answer) -> bool:
    return answer.status in (404, 405, 501) or (answer.status < 400 and answer.json is None)


def _neighbours(base_url: str) -> Iterator[str]:
    """Addresses of the same origin at which the API may be."""
    parts = urlsplit(base_url)
    path = COPIED_END.sub("", parts.path.rstrip("/"))
    for each in (path, f"{path}/v1"):
        if each != parts.path.rstrip("/") and not each.endswith("/v1/v1"):
            yield urlunsplit(parts._replace(path=each))


def _check_error(answer: Answer, variable: str) -> None:
    error = provider_error(answer.body, answer.status)
    said = Cleared(error.reported.message if error.reported is not None else "", [])
    if re.search(r"scope|permission", said):  # a key may be for chats alone
        return
    if error.code == "model_auth":
        log.warning("the model's provider refused %s (%d): %s", variable, answer.status, said)
    elif answer.status >= 400 and not error.retryable:
        log.warning("the model's provider refused to list its models (%d): %s", answer.status, said)


def _check_name(name: str, variable: str, answer: Answer) -> None:
    entries = answer.models or ()
    names = [entry["id"].removeprefix("models/") for entry in entries]  # Gemini's begin so
    whole = not (isinstance(answer.json, dict) and answer.json.get("has_more"))
    if not names or not whole or any(map(_takes_any_name, entries)) or _is_among(name, names):
        return
    near = difflib.get_close_matches(name, names, NEAR_NAMES, cutoff=0.4) or names[:NEAR_NAMES]
    has = Cleared(", ".join(near), [])
    log.warning("the model's provider does not list %s %s; it has %s", variable, name, has)


def _is_among(name: str, names: Sequence[str]) -> bool:
    """A name may have a variant behind a colon, and a proxy lists patterns."""
    forms = {name, f"{name}:latest", name.rpartition(":")[0] or name}
    return not forms.isdisjoint(names) or any("*" in each and fnmatch.fnmatchcase(name, each) for each in names)


def _takes_any_name(entry: dict[str, Any]) -> bool:
    """llama.cpp serves its one model under each name. Azure lists models, and is asked for a deployment."""
    return entry.get("owned_by") == "llamacpp" or "lifecycle_status" in entry
