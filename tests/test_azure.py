"""The addresses of Azure OpenAI that docs/providers.md names, on a server with Azure's rules for them.

The rules are those of its documentation: "Azure OpenAI in Azure AI Foundry Models API lifecycle", and the REST reference
of 2024-10-21.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from langchain_core.messages import HumanMessage

from drafting.deltas import ModelError
from drafting.provider.model_check import check
from drafting.provider.openai_model import OpenAIModel
from drafting.tools import TOOLS
from settings import Settings

pytestmark = pytest.mark.anyio

KEY = "geheim-azure"
REPLY = (
    b'data: {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}\n\n'
    b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "OK."}, "finish_reason": null}]}\n\n'
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "content_filter_results": {}}]}\n\n'
    b"data: [DONE]\n\n"
)


def refusal(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


async def answer(request: web.Request) -> web.StreamResponse:
    """A bearer token is one of Entra ID, but that the address of version 1 takes a key there, too."""
    is_v1 = request.path.startswith("/openai/v1/")
    token = request.headers.get("Authorization")
    as_token = token in ("Bearer entra-token", f"Bearer {KEY}" if is_v1 else None)
    if not (as_token if token is not None else request.headers.get("api-key") == KEY):
        return refusal(401, "401", "Access denied due to invalid subscription key or wrong API endpoint.")
    if not is_v1 and request.query.get("api-version") != "2024-10-21":
        return refusal(404, "404", "Resource not found")
    if request.path == "/openai/v1/models":  # the models that there are, and not the deployments
        models = [{"id": "gpt-4o-2024-11-20", "object": "model", "lifecycle_status": "generally-available"}]
        return web.json_response({"data": models, "object": "list"})
    if request.path == "/openai/v1/chat/completions":
        deployment = (await request.json())["model"]
    elif request.path == "/openai/deployments/drafts/chat/completions":
        deployment = "drafts"
    else:
        return refusal(404, "404", "Resource not found")
    if deployment != "drafts":
        return refusal(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
    return web.Response(body=REPLY, content_type="text/event-stream")


@asynccontextmanager
async def azure() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


V1, OLD = "/openai/v1", "/openai/deployments/drafts"
API_KEY = '{"api-key": "geheim-azure"}'
REFUSED = "the model's provider refused OPENAI_API_KEY (401)"
SETTINGS: list[tuple[Mapping[str, str], str, str]] = [
    # The settings, the code of the error or how the reply ended, and the warning at the start, if there is one.
    ({"OPENAI_BASE_URL": V1, "OPENAI_API_KEY": KEY}, "stop", ""),
    ({"OPENAI_BASE_URL": f"{V1}/", "OPENAI_API_KEY": KEY}, "stop", ""),
    ({"OPENAI_BASE_URL": V1, "OPENAI_API_KEY": "entra-token"}, "stop", ""),
    ({"OPENAI_BASE_URL": V1, "MODEL_HEADERS": API_KEY}, "stop", ""),
    ({"OPENAI_BASE_URL": V1, "OPENAI_API_KEY": KEY, "MODEL_QUERY": "api-version=preview"}, "stop", ""),
    ({"OPENAI_BASE_URL": f"{OLD}?api-version=2024-10-21", "MODEL_HEADERS": API_KEY}, "stop", ""),
    ({"OPENAI_BASE_URL": OLD, "MODEL_QUERY": "api-version=2024-10-21", "MODEL_HEADERS": API_KEY}, "stop", ""),
    ({"OPENAI_BASE_URL": f"{OLD}?api-version=2024-10-21", "OPENAI_API_KEY": "entra-token"}, "stop", ""),
    # Likely mistakes.
    ({"OPENAI_BASE_URL": V1, "OPENAI_API_KEY": KEY, "OPENAI_MODEL": "gpt-4o"}, "model_not_found", ""),
    ({"OPENAI_BASE_URL": V1, "OPENAI_API_KEY": "wrong"}, "model_auth", REFUSED),
    ({"OPENAI_BASE_URL": f"{V1}/chat/completions", "OPENAI_API_KEY": KEY}, "model_misconfigured", f"{V1}"),
    ({"OPENAI_BASE_URL": "/openai", "OPENAI_API_KEY": "entra-token"}, "model_misconfigured", f"{V1}"),
    ({"OPENAI_BASE_URL": "", "OPENAI_API_KEY": KEY}, "model_auth", REFUSED),
    ({"OPENAI_BASE_URL": OLD, "MODEL_HEADERS": API_KEY}, "model_misconfigured", ""),
    ({"OPENAI_BASE_URL": f"{OLD}?api-version=2024-10-21", "OPENAI_API_KEY": KEY}, "model_auth", REFUSED),
]


async def test_azures_addresses_work_as_the_documentation_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "draftstream")
    async with azure() as url:
        for given, expected, warning in SETTINGS:
            caplog.clear()
            env = {"OPENAI_MODEL": "drafts", **given, "OPENAI_BASE_URL": url + given["OPENAI_BASE_URL"]}
            settings = Settings.from_env(env)
            headers, query = dict(settings.model_headers), dict(settings.model_query)
            model = OpenAIModel(
                settings.openai_model,
                api_key=settings.openai_api_key,
                base_url=settings.openai_base_url,
                headers=headers,
                query=query,
            )
            await check(model, {settings.openai_model: "OPENAI_MODEL"})
            warnings = [record.getMessage() for record in caplog.records]
            try:
                outcome: str = (await model.reply([HumanMessage("Hi")], TOOLS, lambda _: None)).reason
            except ModelError as error:
                outcome = error.code
            await model.aclose()
            assert outcome == expected, given
            assert (warnings == []) if warning == "" else (len(warnings) == 1 and warning in warnings[0]), warnings
            assert "geheim" not in caplog.text
