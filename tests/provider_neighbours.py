"""Cases beside the published ones: the same faults of providers in other places, shapes and orders."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from case_provider import DONE, Case, Reply, delta

ALPHA, BETA = ("Alpha", "# Alpha\n\nFirst text."), ("Beta", "# Beta\n\nSecond text.")
STOP, CALLS = delta({}, "stop"), delta({}, "tool_calls")
SAYS_OK: dict[str, Any] = {"end": "stop", "text": "OK."}
OK, DOT = delta(content="OK"), delta(content=".")
DRAFTED: dict[str, Any] = {"end": "stop", "docs": dict([ALPHA]), "text": "All done."}
BOTH: dict[str, Any] = {"end": "stop", "docs": dict([ALPHA, BETA]), "text": "All done."}


def arguments(document: tuple[str, str]) -> str:
    return json.dumps({"title": document[0], "content": document[1]})


def call(document: tuple[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    """A call of `write_document` that is whole, or its head."""
    whole = "" if document is None else arguments(document)
    return fields | {"function": {"name": "write_document", "arguments": whole}}


def more(text: str, **fields: Any) -> dict[str, Any]:
    return fields | {"function": {"arguments": text}}


def calls(*fragments: dict[str, Any]) -> list[str]:
    return [delta(tool_calls=[fragment]) for fragment in fragments]


def case(name: str, body: Sequence[str | bytes | float], expect: Mapping[str, Any], **reply: Any) -> Case:
    return Case(name, ["first"], [Reply(body, **reply)], [expect])


def whole(message: dict[str, Any], finish: str = "stop", **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "choices": [choice], **fields}


def failed(code: str, *, retryable: bool = True, **more: Any) -> dict[str, Any]:
    return {"error": code, "retryable": retryable, **more}


A1, A2 = arguments(ALPHA)[:9], arguments(ALPHA)[9:]
USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}\n\n'
OF_USAGE = {"input_tokens": 11, "output_tokens": 7}

CALL_CASES = [
    case("two-calls-in-one-chunk", [delta(tool_calls=[call(ALPHA, index=0), call(BETA, index=0)]), CALLS], BOTH),
    case("same-id-and-index", [*calls(call(ALPHA, index=0, id="f"), call(BETA, index=0, id="f")), CALLS], BOTH),
    case("legacy-twice", [*(delta(function_call=call(each)["function"]) for each in (ALPHA, BETA)), CALLS], BOTH),
    case(
        "fragments-behind-a-whole-call",
        [*calls(call(ALPHA, index=0, id="a"), more(arguments(BETA), index=0)), CALLS, DONE],
        BOTH,
    ),
    case(
        "placeholder-in-the-same-fragment",
        [*calls(call(index=0, id="a"), more("{}" + A1, index=0), more(A2, index=0)), CALLS, DONE],
        DRAFTED,
    ),
    case("null-first", [*calls(call(index=0), more("null", index=0), more(A1 + A2, index=0)), CALLS, DONE], DRAFTED),
    case("calls-in-the-finish-chunk", [delta({"tool_calls": [call(ALPHA, index=0)]}, "tool_calls"), DONE], DRAFTED),
    case("index-as-text", [*calls(call(index="0", id="a"), more(A1 + A2, index="0")), CALLS, DONE], DRAFTED),
    case("double-encoded", [*calls(call(index=0), more(json.dumps(A1 + A2), index=0)), CALLS], DRAFTED),
    case("in-a-fence", [*calls(call(), more("```json\n" + A1), more(A2 + "\n"), more("```")), CALLS], DRAFTED),
    case("name-in-pieces", [*calls({"index": 0, "function": {"name": "write_"}}),
                            *calls({"index": 0, "function": {"name": "document"}}, more(A1 + A2, index=0)), CALLS], DRAFTED),
    case("arguments-as-object", [*calls({"function": {"name": "write_document", "arguments": json.loads(A1 + A2)}}), CALLS],
         DRAFTED),
    case("finish-tool-calls-without-a-call", [OK, DOT, CALLS, DONE], SAYS_OK),
    case("calls-with-finish-eos", [*calls(call(ALPHA, index=0)), delta({}, "eos_token"), DONE], DRAFTED),
]  # fmt: skip

STREAM_CASES = [
    case("bom-and-cr", [b"\xef\xbb\xbf", (OK + DOT + STOP + DONE).replace("\n", "\r")], SAYS_OK),
    case("cr-lf-cut", [OK[:-2] + "\r", "\n\r", "\n", (DOT + STOP).replace("\n", "\r\n")], SAYS_OK),
    case("one-line-end", [each[:-1] for each in (OK, DOT, STOP, DONE)], SAYS_OK),
    case("without-the-last-line-end", [OK, DOT, STOP[:-2]], SAYS_OK),
    case("comments-and-fields", [": x\n\n", "id: 1\nevent: message\nretry: 3\n" + OK, "event: ping\ndata: ping\n\n",
                                 "data\n\n", "data:\n\n", DOT, STOP], SAYS_OK),
    case("indented-json", ["data: " + json.dumps(json.loads(OK[6:]), indent=1).replace("\n", "\ndata: ") + "\n\n", DOT, STOP],
         SAYS_OK),
    case("lines-of-json", [each[6:-1] for each in (OK, DOT, STOP)], SAYS_OK, type="application/x-ndjson"),
    case("done-in-quotes", [OK, DOT, STOP, 'data: "[DONE]"\n\n'], SAYS_OK),
    case("message-in-the-last-chunk", [f"data: {json.dumps(whole({'content': 'OK.'}))}\n\n", DONE], SAYS_OK),
    case("message-repeats-the-deltas", [OK, DOT, f"data: {json.dumps(whole({'content': 'OK.'}))}\n\n", DONE], SAYS_OK),
    case("message-repeats-the-call", [*calls(call(ALPHA, index=0, id="a")),
                                      f"data: {json.dumps(whole({'content': None, 'tool_calls': [call(ALPHA, id='b')]}))}\n\n"],
         DRAFTED | {"versions": ["Alpha"]}),
    case("whole-completion", [json.dumps(whole({"content": "OK."}))], SAYS_OK, type="application/json"),
    case("whole-completion-indented", [json.dumps(whole({"content": "OK.", "reasoning_content": "Hm"}), indent=2)], SAYS_OK,
         type="application/json"),
    case("whole-completion-with-a-call", [json.dumps(whole({"content": "", "tool_calls": [call(ALPHA, id="a")]}, "tool_calls"))],
         DRAFTED, type="application/json"),
    case("silence-behind-the-end", [OK, DOT, STOP], SAYS_OK, end="hang"),
    case("heartbeats-behind-the-end", [OK, DOT, STOP, USAGE], SAYS_OK | {"usage": OF_USAGE}, end="heartbeats"),
    case("reset-behind-the-end", [OK, DOT, STOP, 0.1], SAYS_OK, end="reset"),
    case("usage-a-while-behind-the-end", [OK, DOT, STOP, 0.4, USAGE], SAYS_OK | {"usage": OF_USAGE}, end="hang"),
    case("error-behind-the-end", [OK, DOT, STOP, 'data: {"error":{"code":500,"message":"x"}}\n\n'], SAYS_OK),
    case("rubbish-behind-the-end", [OK, DOT, STOP, "data: {rubbish\n\n", "data: 5\n\n"], SAYS_OK),
    case("end-cut-in-its-line-end", [OK, DOT, STOP[:-1]], SAYS_OK, end="reset"),
]  # fmt: skip

THOUGHTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]
CONTENT_CASES = [
    case("think-cut", [delta(content=each) for each in ("\n<th", "ink>", "I <", "/think", "> ", "\n\nOK", ".")] + [STOP], SAYS_OK),
    case("think-later-is-text", [OK, DOT, delta(content=" <think>"), STOP], {"end": "stop", "text": "OK. <think>"}),
    case("think-then-a-call", [delta(content="<think>x</think>\n"), *calls(call(ALPHA, index=0)), CALLS], DRAFTED),
    case("less-than-at-the-end", [delta(content="<th"), STOP], {"end": "stop", "text": "<th"}),
    case("parts", [delta(content=[*THOUGHTS, {"type": "text", "text": "OK"}, {"type": "reference"}]), DOT, STOP], SAYS_OK),
    case("one-part", [delta(content={"type": "output_text", "text": "OK."}), STOP], SAYS_OK),
    case("reasoning-fields", [delta(reasoning="a", content=""), delta(thinking="b"), OK, DOT, STOP], SAYS_OK),
    case("empty", [delta(role="assistant", content=""), STOP, DONE], failed("model_empty", text="")),
    case("think-alone", [delta(content="<think>What shall I"), STOP], failed("model_empty", text="")),
    case("reasoning-alone", [delta(reasoning_content="Hm"), STOP], failed("model_empty", text="")),
    case("white-space-alone", [delta(content=" \n"), STOP], failed("model_empty", text="")),
    case("finish-tool-calls-with-nothing", [CALLS, DONE], failed("model_empty", text="")),
    Case("nothing-behind-a-document", ["first"], [Reply([*calls(call(ALPHA, index=0)), CALLS]), Reply([STOP])],
         [DRAFTED | {"text": ""}]),
]  # fmt: skip


def finish(reason: str, expect: Mapping[str, Any]) -> Case:
    name = "finish-" + "".join(each if each.isalnum() else "-" for each in reason)
    return case(name, [OK, DOT, delta({}, reason), DONE], {"text": "OK.", **expect})


FINISH_CASES = [
    *(finish(reason, {"end": "stop", "complete": True}) for reason in ("STOP", "end_turn", "eos", "stop_sequence", "COMPLETE")),
    *(finish(reason, {"end": "length", "complete": False}) for reason in ("MAX_TOKENS", "model_length", "max_output_tokens")),
    *(
        finish(reason, {"end": "content_filter", "complete": False})
        for reason in ("SAFETY", "content_filter: PROHIBITED_CONTENT", "function_call_filter: X", "sensitive", "RECITATION")
    ),
    *(
        finish(reason, failed("model_truncated", complete=False, says=f'"{reason}"'))
        for reason in ("insufficient_system_resource", "network_error", "malformed_function_call", "repetition")
    ),
    finish("no <word> of ours", failed("model_truncated", complete=False)),
    finish("null", failed("model_truncated", complete=False)),
    case("finish-null-in-each-chunk", [delta({"content": "OK."}, "null"), STOP], SAYS_OK),
    case("abort-then-its-error", [OK, delta({}, "abort"), 'data: {"error":{"code":429,"message":"x"}}\n\n'],
         failed("model_rate_limited", text="OK")),
    case("abort-then-silence", [OK, delta({}, "abort")], failed("model_truncated", text="OK"), end="hang"),
]  # fmt: skip

TOO_LONG = {"code": 400, "message": "prompt is too long: 128466 tokens > 100000 maximum"}
CONTEXT = failed("model_context", retryable=False)
ERROR_CASES = [
    case("event-error", [OK, f"event: error\ndata: {json.dumps(TOO_LONG)}\n\n"], CONTEXT),
    case("event-error-of-claude", [OK, f"event: error\ndata: {json.dumps({'type': 'error', 'error': TOO_LONG})}\n\n"], CONTEXT),
    case("event-error-as-text", [OK, "event: error\ndata: rate limit exceeded\n\n"], failed("model_rate_limited")),
    case("error-in-a-list", [f"data: {json.dumps([{'error': TOO_LONG}])}\n\n"], CONTEXT),
    case("error-as-a-list-body", [json.dumps([{"error": TOO_LONG}], indent=2)], CONTEXT, type="application/json"),
    case("error-in-lines-of-json", [OK, json.dumps({"error": TOO_LONG}, indent=2) + "\n"], CONTEXT),
    case("error-without-framing-then-silence", [OK, json.dumps({"error": TOO_LONG}) + "\n"], CONTEXT, end="hang"),
    case("error-without-framing-cut-off", [OK, json.dumps({"error": TOO_LONG})], CONTEXT, end="reset"),
    case("error-beside-a-finish", [OK, delta({}, "stop").replace("{", json.dumps({"error": TOO_LONG})[:-1] + ", ", 1)], CONTEXT),
    case("error-of-fastapi", ['{"detail": "rate limit exceeded"}'], failed("model_rate_limited"), type="application/json"),
    case("error-type-beside-no-choices", ['data: {"error_type":"rate_limit_exceeded","message":"slow"}\n\n'],
         failed("model_rate_limited")),
    case("page-in-lines", ["<html>\n<head><title>Sign in</title>\n</head>\n</html>\n"], failed("model_unreachable", retryable=False),
         type="text/html"),
    case("error-null-in-each-chunk", [each.replace("{", '{"error":null,', 1) for each in (OK, DOT, STOP)], SAYS_OK),
]  # fmt: skip

NEIGHBOURS = [*CALL_CASES, *STREAM_CASES, *CONTENT_CASES, *FINISH_CASES, *ERROR_CASES]
