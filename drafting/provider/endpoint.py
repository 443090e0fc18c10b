"""Where a provider is, and how it is spoken to. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

# Their reasoning models refuse `max_tokens`. Most other servers know nothing else, and some pass an unknown name by.
HOSTS_OF_NEW_NAMES = ("openai.com", "azure.com")


@dataclass(frozen=True, slots=True)
class Variables:
    """The environment variables that an operator corrects."""

    base_url: str
    api_key: str


OF_FIRST = Variables("OPENAI_BASE_URL", "OPENAI_API_KEY")
OF_FALLBACK = Variables("MODEL_FALLBACK_BASE_URL", "MODEL_FALLBACK_API_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """None: the provider's own default, or nothing is sent."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    stream_options: bool = True
    max_output_tokens: int | None = None
    temperature: float | None = None
    reasoning_effort: str | None = None
    variables: Variables = OF_FIRST

    def elsewhere(self, base_url: str | None, api_key: str | None) -> "Endpoint":
        """Another endpoint, or another key at this one. A key, a header or a query goes to the one it was set for."""
        if base_url is None:
            if api_key is None:
                return self
            return replace(self, api_key=api_key, variables=replace(self.variables, api_key=OF_FALLBACK.api_key))
        return replace(self, base_url=base_url, api_key=api_key, headers={}, query={}, variables=OF_FALLBACK)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Of each request, beside the messages and the tools."""
        host = urlsplit(self.base_url).hostname or "" if self.base_url is not None else "openai.com"
        has_new_names = any(host == known or host.endswith(f".{known}") for known in HOSTS_OF_NEW_NAMES)
        parameters = {
            "stream_options": {"include_usage": True} if self.stream_options else None,
            "max_completion_tokens" if has_new_names else "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "reasoning_effort": self.reasoning_effort,
        }
        return {name: value for name, value in parameters.items() if value is not None}
