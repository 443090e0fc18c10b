"""Cases of further public reports, rebuilt from what they quote: (source, case). A source without a number is a habit
of that server which its clients know.
"""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from case_provider import DONE, Case, Reply, delta
from provider_neighbours import (
    ALPHA,
    BETA,
    BOTH,
    CALLS,
    DOT,
    DRAFTED,
    OF_USAGE,
    OK,
    SAYS_OK,
    STOP,
    USAGE,
    arguments,
    call,
    calls,
    case,
    failed,
    more,
)

Reported = tuple[str, Case]
TEXT = arguments(ALPHA)
A1, A2, A3 = TEXT[:4], TEXT[4:30], TEXT[30:]
NAME = "write_document"
FRENCH: dict[str, Any] = {"end": "stop", "text": "Été — naïve 📄."}


def event(chunk: object) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def choice(**fields: Any) -> str:
    return event({"choices": [{"index": 0, **fields}]})


def texts(*parts: str) -> list[str]:
    return [delta(content=part) for part in parts]


def pairs(*parts: str, **fields: Any) -> list[str]:
    """The fragments of one call, each with the same fields beside its arguments."""
    return calls(*({"index": 0, "function": {"arguments": part, **fields}} for part in parts))


def ending(reason: str, expect: Mapping[str, Any]) -> Case:
    return case(
        f"ending-{re.sub('[^A-Za-z]', '-', reason)}", [OK, DOT, delta({}, reason), DONE], {"text": "OK.", **expect}
    )


AZURE_NOTE = {"content_filter_results": {"hate": {"filtered": False}}, "content_filter_offsets": {"check_offset": 44}}
FIRST = {"choices": [], "created": 0, "id": "", "prompt_filter_results": [{"prompt_index": 0}]}

CHUNKS: Sequence[Reported] = [
    ("pydantic/pydantic-ai#5170", case("choices-null", [event({"choices": None}), OK, DOT, STOP, DONE], SAYS_OK)),
    ("microsoft/agent-framework#5734", case("delta-null-at-the-end", [OK, DOT, choice(delta=None, finish_reason="stop")],
                                            SAYS_OK)),
    ("microsoft/autogen#7711", case("null-as-heartbeat", ["data: null\n\n", OK, "data: null\n\n", DOT, STOP], SAYS_OK)),
    ("langchain-ai/langchain#18977", case("azure-notes-without-delta", [event(FIRST), OK, choice(**AZURE_NOTE), DOT, STOP,
                                          choice(**AZURE_NOTE, finish_reason=None), DONE], SAYS_OK)),
    ("Azure's asynchronous filter", case("azure-filter-behind-the-end", [OK, DOT, STOP,
                                         choice(**AZURE_NOTE, finish_reason="content_filter")],
                                         {"end": "content_filter", "complete": False})),
    ("SeraphimSerapis/tool-eval-bench#11", case("explicit-nulls", [delta({"role": "assistant", "content": None, "tool_calls":
                                                None, "function_call": None}), OK, delta({"content": ".", "tool_calls": None}),
                                                STOP], SAYS_OK)),
    ("anomalyco/opencode#43379", case("cost-chunk-at-the-end", [event({"choices": []}), OK, DOT, STOP, USAGE,
                                      event({"choices": [], "cost": "0"}), DONE], SAYS_OK | {"usage": OF_USAGE})),
    ("usage first", case("usage-chunk-first", [USAGE, OK, DOT, STOP, DONE], SAYS_OK | {"usage": OF_USAGE})),
    ("sgl-project/sglang, continuous usage", case("usage-in-each-chunk", [each.replace("{", '{"usage":{"prompt_tokens":11,'
                                                  '"completion_tokens":7},', 1) for each in (OK, DOT, STOP)],
                                                  SAYS_OK | {"usage": OF_USAGE})),
    ("lobehub/lobehub#3252", case("text-in-the-finish-chunk", [OK, delta({"content": "."}, "stop"), DONE], SAYS_OK)),
    ("vllm-project/vllm#38499", case("finish-reason-missing-until-the-end", [choice(delta={"content": "OK"}), choice(delta={
                                     "content": "", "reasoning_content": "Hm"}), choice(delta={"content": "."}), STOP], SAYS_OK)),
    ("two proxies", case("data-twice", ["data: " + each for each in (OK, DOT, STOP, DONE)], SAYS_OK)),
    ("[DONE] twice", case("done-twice", [OK, DOT, STOP, DONE, DONE], SAYS_OK)),
    ("[DONE] first", case("finish-twice", [OK, DOT, STOP, STOP, DONE], SAYS_OK)),
    ("a role in each chunk", case("role-in-each-chunk", [delta(role="assistant", content="OK"), delta(role="assistant",
                                  content="."), STOP], SAYS_OK)),
    ("role tool", case("role-tool", [delta(role="tool", content="OK"), DOT, STOP], SAYS_OK)),
    ("choices index 1", case("choice-index-1", [event({"choices": [{"index": 1, "delta": {"content": "OK."}}]}),
                             event({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]})], SAYS_OK)),
    ("QwenLM/qwen-code#3896", case("content-cumulative", [*texts("O", "OK", "OK, yes", "OK, yes. OK, yes."), STOP],
                                   {"end": "stop", "text": "OK, yes. OK, yes."})),
    ("agno-agi/agent-ui#151", case("content-that-repeats-itself", [*texts("na", "na", "nana", " na"), STOP],
                                   {"end": "stop", "text": "nananana na"})),
    ("Chinese words", case("content-that-grows-once", [*texts("好", "好的", "。"), STOP], {"end": "stop", "text": "好好的。"})),
    ("a short text", case("content-that-grows-and-ends", [*texts("好", "好的"), STOP], {"end": "stop", "text": "好好的"})),
    ("message in place of delta", case("message-in-each-chunk", [choice(message={"content": each}, finish_reason=None)
                                       for each in ("na", " na", "na", ".")] + [choice(message={}, finish_reason="stop")],
                                       {"end": "stop", "text": "na nana."})),
    ("swuecho/chat#687", case("message-cumulative", [choice(message={"content": each}, finish_reason=None)
                              for each in ("OK", "OK, yes", "OK, yes.")] + [choice(message={"content": "OK, yes."},
                              finish_reason="stop")], {"end": "stop", "text": "OK, yes."})),
    ("a text completion", case("text-in-place-of-delta", [choice(text="OK", finish_reason=None), choice(text=".",
                               finish_reason="stop"), DONE], SAYS_OK)),
]  # fmt: skip

UTF8 = b"".join(
    event({"choices": [{"index": 0, "delta": {"content": each}}]}).encode() for each in ("Été — ", "naïve 📄.")
)
BYTES: Sequence[Reported] = [
    ("cut in UTF-8", case("cut-in-utf-8", [UTF8[at : at + 1] for at in range(len(UTF8))] + [STOP], FRENCH)),
    ("surrogates over two chunks", case("surrogate-pair-cut", [*texts("Été — naïve "), delta(content="\ud83d"),
                                        delta(content="\udcc4."), STOP], FRENCH)),
    ("NUL in a text", case("nul-in-the-text", [*texts("O\0K", "."), STOP], {"end": "stop", "text": "O\ufffdK."})),
    ("NUL between events", case("nul-bytes-as-padding", [b"\0\0\n\n", OK, DOT, STOP], SAYS_OK)),
    ("gzip", case("gzip", [gzip.compress(f"{OK}{DOT}{STOP}{DONE}".encode())], SAYS_OK, headers={
        "Content-Encoding": "gzip"})),
    ("HTTP/1.0", case("http-1-0", [OK, DOT, STOP, DONE], SAYS_OK, until_closed=True)),
    ("HTTP/1.0 cut", case("http-1-0-cut", [OK], failed("model_truncated", text="OK"), until_closed=True)),
    ("HTML behind the end", case("page-behind-the-end", [OK, DOT, STOP, "<html><body>504</body></html>"], SAYS_OK)),
    ("no content type", case("content-type-text-plain", [OK, DOT, STOP, DONE], SAYS_OK, type="text/plain")),
    ("JSON as its type", case("content-type-json", [OK, DOT, STOP, DONE], SAYS_OK, type="application/json")),
    ("a space before data", case("white-space-lines", ["\n\n\n", OK, "\n", DOT, "\n\n\n\n", STOP], SAYS_OK)),
    ("diegosouzapw/OmniRoute heartbeats", case("comment-heartbeats", [": keepalive\n\n", OK, ": OPENROUTER PROCESSING\n\n",
                                               DOT, STOP, ": end\n\n", DONE], SAYS_OK)),
    ("an id in each event", case("ids-and-retries", ["retry: 3000\n\n", "id: 1\n" + OK, "event: message\nid: 2\n" + DOT, STOP],
                                 SAYS_OK)),
    ("a ping of Anthropic's", case("event-ping", ['event: ping\ndata: {"type":"ping"}\n\n', OK, DOT, STOP], SAYS_OK)),
    ("an event of its own at the end", case("event-done", [OK, DOT, STOP, "event: done\ndata: {}\n\n"], SAYS_OK)),
]  # fmt: skip

CALL_REPORTS: Sequence[Reported] = [
    ("BerriAI/litellm#4440", case("arguments-null-first", [*calls({"index": 0, "id": "a", "function": {"name": NAME,
                                  "arguments": None}}, more(TEXT, index=0)), CALLS], DRAFTED)),
    ("lidge-jun/opencodex#1754", case("null-padding", [*calls({"index": 0, "id": "a", "type": "function", "function": {"name":
                                      NAME, "arguments": ""}}, *({"index": 0, "id": None, "type": None, "function": {"name":
                                      None, "arguments": each}} for each in (A1, A2, A3))), CALLS], DRAFTED)),
    ("vercel/ai#14722", case("name-behind-arguments", [*calls(more(A1, index=0, id="a"), {"index": 0, "function": {"name": NAME}},
                             more(A2 + A3, index=0)), CALLS], DRAFTED)),
    ("vercel/ai#14722, at the end", case("name-in-the-last-fragment", [*calls(more(TEXT, index=0, id="a"), {"index": 0,
                                         "function": {"name": NAME}}), CALLS], DRAFTED)),
    ("an id at the end", case("id-in-the-last-fragment", [*calls(call(index=0), more(TEXT, index=0), {"index": 0, "id": "a"}),
                              CALLS], DRAFTED | {"versions": ["Alpha"]})),
    ("NousResearch/hermes-agent#35718", case("arguments-cumulative", [*pairs(TEXT[:1], TEXT[:9], TEXT[:20], TEXT, name=NAME),
                                             CALLS], DRAFTED | {"versions": ["Alpha"]})),
    ("vercel/ai#15888", case("arguments-cumulative-with-an-id", [*calls(*({"index": 0, "id": "a", "type": "function", "function":
                             {"name": NAME, "arguments": TEXT[:end]}} for end in (0, 2, 25, 26, 99, 99))), CALLS],
                             DRAFTED | {"versions": ["Alpha"]})),
    ("NousResearch/hermes-agent#35718, two", case("arguments-cumulative-of-two", [*pairs(TEXT[:9], TEXT, TEXT, name=NAME), *calls(
        *({"index": 1, "function": {"name": NAME, "arguments": arguments(BETA)[:end]}} for end in (12, 99, 99))), CALLS],
        BOTH | {"versions": ["Alpha", "Beta"]})),
    ("lidge-jun/opencodex#361", case("arguments-sent-twice", [*calls(call(index=0, id="a"), more(TEXT, index=0), more(TEXT,
                                     index=0)), CALLS], DRAFTED | {"versions": ["Alpha"]})),
    ("NousResearch/hermes-agent#11984", case("name-in-each-fragment", [*pairs(A1, A2, A3, name=NAME), CALLS],
                                             DRAFTED | {"versions": ["Alpha"]})),
    ("name and id in each fragment", case("name-and-id-in-each-fragment", [*calls(*({"index": 0, "id": "a", "function": {"name":
                                          NAME, "arguments": each}} for each in (A1, A2, A3, ""))), CALLS],
                                          DRAFTED | {"versions": ["Alpha"]})),
    ("a fence, the name in each fragment", case("fence-and-names", [*pairs("```json\n", A1, A2 + A3, "\n```", name=NAME), CALLS],
                                                DRAFTED | {"versions": ["Alpha"]})),
    ("two calls in a fence", case("fences-and-names-of-two", [*calls(*({"function": {"name": NAME, "arguments": each}} for each in
                                  ("```json\n" + TEXT, "\n```", arguments(BETA)))), CALLS], BOTH)),
    ("tontinton/maki#518", case("functions-prefix", [*calls({"index": 0, "function": {"name": "functions." + NAME, "arguments":
                                TEXT}}), CALLS], DRAFTED)),
    ("vllm-project/vllm#32633", case("harmony-in-the-name", [*calls({"index": 0, "function": {"name": NAME +
                                     "<|channel|>commentary", "arguments": TEXT}}), CALLS], DRAFTED)),
    ("vllm-project/vllm#32146", case("kimi-name-with-index", [*calls({"index": 0, "id": "functions.write_document:0", "function":
                                     {"name": "functions.write_document:0", "arguments": TEXT}}), CALLS], DRAFTED)),
    ("vllm-project/vllm#32152", case("last-brace-missing", [*calls(call(index=0, id="a"), more(TEXT[:-1], index=0)), CALLS],
                                     DRAFTED)),
    ("vllm-project/vllm#45256", case("last-quote-missing", [*calls(call(index=0, id="a"), more(TEXT[:-2], index=0)), CALLS],
                                     DRAFTED)),
    ("one brace too many", case("one-brace-more", [*calls(call(index=0, id="a"), more(TEXT + "}", index=0)), CALLS], DRAFTED)),
    ("a template's end", case("tool-call-tag-behind", [*calls(call(index=0, id="a"), more(TEXT, index=0), more("\n</tool", index=0),
                              more("_call>", index=0)), CALLS], DRAFTED)),
    ("a special token", case("special-token-behind", [*calls(call(index=0), more(TEXT + "<|im_end|>", index=0)), CALLS], DRAFTED)),
    ("tool_calls as an object", case("one-call-without-a-list", [delta(tool_calls=call(ALPHA, index=0, id="a")), CALLS], DRAFTED)),
    ("null among the calls", case("null-among-calls", [delta(tool_calls=[None, call(ALPHA, index=0)]), CALLS], DRAFTED)),
    ("parallel, without index", case("two-whole-without-index", [delta(tool_calls=[call(ALPHA, id="a"), call(BETA, id="b")]),
                                     CALLS], BOTH)),
    ("parallel, with nothing", case("two-whole-with-nothing", [delta(tool_calls=[call(ALPHA), call(BETA)]), CALLS], BOTH)),
    ("parallel, index null", case("index-null", [*calls(call(index=None, id="a"), more(A1, index=None), more(A2 + A3, index=None),
                                  call(BETA, index=None, id="b")), CALLS], BOTH)),
    ("Mistral", case("mistral-whole-in-the-finish-chunk", [delta({"content": "", "tool_calls": [call(ALPHA, id="aB3dE6gH9",
                     index=0), call(BETA, id="bB3dE6gH9", index=1)]}, "tool_calls"), DONE], BOTH)),
    ("index from 1, backwards", case("second-index-first", [*calls(call(ALPHA, index=1, id="a"), call(BETA, index=0, id="b")),
                                     CALLS], BOTH)),
    ("interleaved", case("interleaved-calls", [*calls(call(index=0, id="a"), call(index=1, id="b"), more(A1, index=0),
                         more(arguments(BETA), index=1), more(A2 + A3, index=0)), CALLS], BOTH)),
    ("vllm-project/vllm#42210", case("text-that-looks-like-a-call", [*texts('{"n'), STOP], {"end": "stop", "text": '{"n'})),
    ("jundot/omlx#3153", case("tool-call-as-text", [*texts('<tool_call>{"name":', ' "x"}</tool_call>'), STOP],
                              {"end": "stop", "text": '<tool_call>{"name": "x"}</tool_call>'})),
    ("a text between calls", case("text-between-calls", [*calls(call(ALPHA, index=0)), OK, *calls(call(BETA, index=1)), CALLS],
                                  {"end": "stop", "docs": dict([ALPHA, BETA])})),
    ("CommandCodeAI/command-code#785", case("call-cut-without-an-end", [*calls(call(index=0, id="a"), more(A1 + A2, index=0))],
                                            failed("model_truncated"))),
    ("QuantumNous/new-api#6239", case("call-cut-then-usage-and-done", [*calls(call(index=0, id="a"), more(A1 + A2, index=0)), USAGE,
                                      DONE], failed("model_truncated"))),
    ("a cut call, then what the next turn needs", Case("cut-call-then-again", ["first", "hello"], [Reply([*calls(call(index=0,
        id="a"), more(A1 + A2, index=0)), DONE])], [failed("model_truncated"), {"end": "stop", "text": "All done."}])),
    ("arguments as a list of one", case("arguments-in-content-too", [*texts("Here it is."), *calls(call(ALPHA, index=0)),
                                        delta({"content": None}, "tool_calls")], {"end": "stop", "docs": dict([ALPHA])})),
    ("a custom type", case("type-missing-or-odd", [*calls(call(ALPHA, index=0, type="tool")), CALLS], DRAFTED)),
    ("tool_call alone", case("finish-tool-calls-at-once", [delta({"tool_calls": [call(ALPHA, index=0)], "content": ""}, "tool_use")],
                             DRAFTED)),
]  # fmt: skip

HARMONY = (
    "<|channel|>",
    "analysis",
    "<|message|>",
    "Hm",
    "<|end|>",
    "<|start|>assistant",
    "<|channel|>final<|message|>",
    "OK.",
)
THOUGHTS: Sequence[Reported] = [
    ("open-webui's tags", case("reasoning-tag", [*texts("<reasoning>", "Hm", "</reasoning>", "\n\nOK."), STOP], SAYS_OK)),
    ("open-webui's tags, 2", case("thinking-tag", [*texts("<thinking>Hm</thinking>OK."), STOP], SAYS_OK)),
    ("Kimi-VL", case("kimi-think", [*texts("◁think▷", "Hm◁/th", "ink▷", "OK", "."), STOP], SAYS_OK)),
    ("Doubao's Seed-OSS", case("seed-think", [*texts("<seed:think>Hm</seed:think>", "OK."), STOP], SAYS_OK)),
    ("Sky-T1", case("begin-of-thought", [*texts("<|begin_of_thought|>Hm<|end_of_thought|>\n\n", "OK."), STOP], SAYS_OK)),
    ("kekzl/imp#768", case("harmony", [*texts(*HARMONY), STOP], SAYS_OK)),
    ("scouzi1966/maclocal-api#121", case("harmony-final-alone", [*texts("<|channel|>final<|message|>OK", "."), STOP], SAYS_OK)),
    ("an empty thought", case("think-empty", [*texts("<think>\n\n</think>\n\n", "OK."), STOP], SAYS_OK)),
    ("an end without a beginning", case("end-of-think-first", [*texts("</think>", "\n\nOK."), STOP], SAYS_OK)),
    ("two thoughts", case("think-twice", [*texts("<think>a</think>", "<think>b</think>", "OK."), STOP], SAYS_OK)),
    ("can1357/oh-my-pi#2434", case("think-and-reasoning", [delta(content="<think>Hm", reasoning_content="Hm"), *texts("</think>OK."),
                                   STOP], SAYS_OK)),
    ("think cut by max_tokens", case("think-cut-by-length", [*texts("<think>Hm"), delta({}, "length")],
                                     {"end": "length", "text": ""})),
    ("reasoning cut by max_tokens", case("reasoning-cut-by-length", [delta(reasoning_content="Hm"), delta({}, "length")],
                                         {"end": "length", "text": ""})),
    ("thinking parts alone", case("thinking-parts-alone", [delta(content=[{"type": "thinking", "thinking": "Hm"}]), STOP],
                                  failed("model_empty", text=""))),
    ("content null with reasoning", case("content-null-with-reasoning", [delta(content=None, reasoning="Hm"), OK, DOT, STOP],
                                         SAYS_OK)),
    ("reasoning_details", case("reasoning-details", [delta(content="", reasoning_details=[{"type": "reasoning.text", "text": "Hm"}]),
                               OK, DOT, STOP], SAYS_OK)),
    ("empty, with usage", case("empty-with-usage", [delta(role="assistant", content=""), STOP, USAGE, DONE],
                               failed("model_empty", text=""))),
    ("nothing at all", case("no-event-at-all", [], failed("model_truncated", text=""))),
    ("[DONE] alone", case("done-alone", [DONE], failed("model_truncated", text=""))),
]  # fmt: skip

FINISHES: Sequence[Reported] = [
    *(("finish reasons", ending(reason, {"end": "stop", "complete": True})) for reason in ("Stop", "stop-sequence", "endTurn")),
    *(("finish reasons", ending(reason, {"end": "length", "complete": False})) for reason in ("max-tokens", "maxTokens",
                                                                                               "FINISH_REASON_MAX_TOKENS")),
    *(("finish reasons", ending(reason, {"end": "content_filter", "complete": False})) for reason in
      ("FinishReason.SAFETY", "contentFilter", "blocked", "prohibited-content")),
    *(("finish reasons", ending(reason, failed("model_truncated", complete=False))) for reason in
      ("OTHER", "cancelled", "timeout", "unknown", "FINISH_REASON_UNSPECIFIED", "load_shed", "engine_overloaded")),
    ("a reason that is no text", case("ending-true", [OK, DOT, delta({}, True), DONE], failed("model_protocol", text="OK."))),
]  # fmt: skip

RATE: dict[str, Any] = failed("model_rate_limited")
LATER = {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}
HALF = calls(call(index=0, id="a"), more(A1 + A2, index=0))


def refused(name: str, status: int, body: object, expect: Mapping[str, Any], **headers: str) -> Case:
    text = body if isinstance(body, str) else json.dumps(body)
    kind = "text/html" if text.startswith("<") else "application/json"
    return Case(
        name, ["first", "hello"], [Reply([text] if text else [], status, kind, headers=headers)], [expect, GOES_ON]
    )


GOES_ON = {"end": "stop", "text": "All done."}
ERRORS: Sequence[Reported] = [
    ("a date in Retry-After", refused("retry-after-date", 429, {"error": {"message": "x"}}, RATE, **LATER)),
    ("an hour in Retry-After", refused("retry-after-hour", 429, {"error": {"message": "x"}}, RATE | {"says": "60 minutes"},
                                       **{"Retry-After": "3600"})),
    ("milliseconds", refused("retry-after-ms", 429, {"error": {"message": "x"}}, RATE, **{"retry-after-ms": "86000000"})),
    ("rubbish in Retry-After", refused("retry-after-rubbish", 402, {"error": {"message": "x"}}, failed("model_quota",
                                       retryable=False), **{"Retry-After": "soon"})),
    ("ollama/ollama#3694", refused("page-524", 524, "<!DOCTYPE html><html><head><title>x | 524: A timeout occurred</title></head>",
                                   failed("model_unavailable"))),
    ("a page with status 200", refused("page-524-with-200", 200, "<!DOCTYPE html><html><head><title>x | 524: A timeout occurred"
                                       "</title></head></html>", failed("model_unavailable"))),
    ("openresty", refused("page-401", 401, "<html><head><title>401 Authorization Required</title></head></html>",
                          failed("model_auth", retryable=False))),
    ("an empty body", refused("empty-403", 403, "", failed("model_auth", retryable=False))),
    ("QuantumNous/new-api#7399", refused("overloaded-with-200", 200, {"error": {"code": "server_is_overloaded", "message":
                                         "Our servers are currently overloaded. Please try again later.", "type":
                                         "service_unavailable_error"}}, failed("model_unavailable"))),
    ("CommandCodeAI/command-code#785", refused("success-false-with-200", 200, {"success": False, "error": {"code":
                                               "INTERNAL_SERVER_ERROR", "status": 500, "message": "An unexpected error occurred."}},
                                               failed("model_unavailable"))),
    ("MiniMax", refused("base-resp-with-200", 200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
                        failed("model_quota", retryable=False))),
    ("mckinsey/agents-at-scale-ark#506", case("error-then-done", [OK, event({"error": {"message": "timeout", "type":
                                              "timeout_error", "code": 408}}), DONE], failed("model_unavailable", text="OK"))),
    ("an error behind half a document", case("error-behind-half-a-call", [*HALF, event({"error": {"message": "x", "code": "429"}}),
                                             DONE], RATE)),
    ("then the next message", Case("error-behind-half-a-call-then-on", ["first", "hello"], [Reply([*HALF, event({"error": {
        "message": "insufficient balance"}})])], [failed("model_quota", retryable=False), GOES_ON])),
    ("Groq", case("tool-use-failed", ["event: error\n" + event({"error": {"message": "Failed to call a function. Please adjust "
                  "your prompt.", "type": "invalid_request_error", "code": "tool_use_failed", "failed_generation": "<function",
                  "status_code": 400}}), DONE], failed("model_unavailable"))),
    ("Ollama", case("error-as-text-in-a-chunk", [OK, event({"error": "an error was encountered while running the model: EOF"})],
                    failed("model_unavailable", text="OK"))),
    ("LM Studio", case("event-error-text", [OK, 'event: error\ndata: {"error":{"message":"The model has crashed"},"message":"x"}\n\n'],
                       failed("model_unavailable", text="OK"))),
    ("Cloudflare Workers AI", case("errors-list", [OK, event({"errors": [{"message": "Capacity temporarily exceeded", "code": 3040}],
                                                   "success": False})], failed("model_unavailable", text="OK"))),
    ("Volcengine", case("error-numeric-text", [OK, event({"error": {"code": "RateLimitExceeded.EndpointTPMExceeded", "message":
                        "x"}})], RATE)),
    ("an error inside of a text", case("error-as-json-text", [OK, event({"error": json.dumps({"error": {"message": "x", "code":
                                       429}})})], RATE)),
    ("nginx in the middle", case("page-in-the-middle", [OK, "<html><head><title>502 Bad Gateway</title></head></html>\n"],
                                 failed("model_unavailable", text="OK"))),
    ("a sentence in the middle", case("text-in-the-middle", [OK, "upstream connect error or disconnect/reset\n"],
                                      failed("model_truncated", text="OK"))),
]  # fmt: skip

REPORTS = [*CHUNKS, *BYTES, *CALL_REPORTS, *THOUGHTS, *FINISHES, *ERRORS]
