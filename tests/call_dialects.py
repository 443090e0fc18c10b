"""The ways in which providers and proxies put the tool calls of a reply on the wire: each is an encoder.

A call is (id, name, arguments). An encoder gives the `tool_calls` of the deltas, in order. The sources are public reports.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

Call = tuple[str, str, str]
Delta = dict[str, Any]
Encoder = Callable[[Sequence[Call], Random], Iterator[Delta]]


def pieces(text: str, random: Random) -> list[str]:
    """The text, cut anywhere."""
    places = sorted(random.choices(range(len(text) + 1), k=random.randrange(6)))
    return [text[start:stop] for start, stop in zip([0, *places], [*places, len(text)], strict=True)]


def fragment(arguments: Any = None, name: str | None = None, **fields: Any) -> Delta:
    function = {} if name is None else {"name": name}
    return fields | {"function": function if arguments is None else function | {"arguments": arguments}}


def openai(calls: Sequence[Call], random: Random, first: int = 0) -> Iterator[Delta]:
    for index, (call_id, name, arguments) in enumerate(calls, first):
        yield fragment("", name, index=index, id=call_id, type="function")
        for piece in pieces(arguments, random):
            yield fragment(piece, index=index)


def index_from_one(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    return openai(calls, random, first=1)


def index_as_text(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for delta in openai(calls, random):
        yield delta | {"index": str(delta["index"])}


def interleaved(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """OpenAI's wire allows it."""
    queues = [
        [
            fragment("", name, index=index, id=call_id),
            *(fragment(piece, index=index) for piece in pieces(arguments, random)),
        ]
        for index, (call_id, name, arguments) in enumerate(calls)
    ]
    while queues:
        queue = random.choice(queues)
        yield queue.pop(0)
        queues = [queue for queue in queues if queue]


def interleaved_by_id(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """Without an index, but with the id in each fragment."""
    for delta in interleaved(calls, random):
        yield {name: value for name, value in delta.items() if name != "index"} | {"id": calls[delta["index"]][0]}


def same_index(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """ollama/ollama#15457, BerriAI/litellm#33678"""
    for delta in openai(calls, random):
        yield delta | {"index": 0}


def same_index_whole(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for call_id, name, arguments in calls:
        yield fragment(arguments, name, index=0, id=call_id, type="function")


def same_index_same_id(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """Proxies for Gemini, which has no ids, make them of the function's name."""
    for _, name, arguments in calls:
        yield fragment(arguments, name, index=0, id=f"function-call-{name}")


def same_id(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (_, name, arguments) in enumerate(calls):
        yield fragment("", name, index=index, id="call_0")
        for piece in pieces(arguments, random):
            yield fragment(piece, index=index, id="call_0")


def no_index(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """noho/dayu-agent#57"""
    for delta in openai(calls, random):
        del delta["index"]
        yield delta


def no_index_no_id(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """ollama/ollama#7881"""
    for _, name, arguments in calls:
        first, *rest = pieces(arguments, random)
        yield fragment(first, name)
        yield from map(fragment, rest)


def no_index_no_id_name_first(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for _, name, arguments in calls:
        yield fragment(None, name)
        yield from map(fragment, pieces(arguments, random))


def no_index_empty_id(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """openai/openai-python#3246"""
    for _, name, arguments in calls:
        yield fragment(arguments, name, id="", type="function")


def same_index_empty_id(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for _, name, arguments in calls:
        yield fragment("", name, id="", index=0)
        for piece in pieces(arguments, random):
            yield fragment(piece, "", id="", index=0)


def whole_in_one_chunk(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for call_id, name, arguments in calls:
        yield fragment(arguments, name, id=call_id)


def placeholder_first(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """BerriAI/litellm#4537, microsoft/autogen#7549"""
    for index, (call_id, name, arguments) in enumerate(calls):
        yield fragment(random.choice(["{}", "null", '""', "{ }", None]), name, index=index, id=call_id)
        for piece in pieces(arguments, random):
            yield fragment(piece, index=index)


def placeholders_before_all(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (call_id, name, _) in enumerate(calls):
        yield fragment("{}", name, index=index, id=call_id)
    for index, (_, _, arguments) in enumerate(calls):
        for piece in pieces(arguments, random):
            yield fragment(piece, index=index)


def placeholder_joined(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """The same when a proxy joins the two: {}{"title": …}"""
    for index, (call_id, name, arguments) in enumerate(calls):
        yield fragment("", name, index=index, id=call_id)
        for piece in pieces("{}" + arguments, random):
            yield fragment(piece, index=index)


def placeholder_same_index(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for call_id, name, arguments in calls:
        yield fragment("{}", name, index=0, id=call_id)
        for piece in pieces(arguments, random):
            yield fragment(piece, index=0, id=call_id)


def all_repeated(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """The id and the name in each chunk."""
    for index, (call_id, name, arguments) in enumerate(calls):
        for piece in pieces(arguments, random):
            yield fragment(piece, name, index=index, id=call_id)


def all_repeated_no_index(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for delta in all_repeated(calls, random):
        del delta["index"]
        yield delta


def new_id_each_chunk(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for number, delta in enumerate(openai(calls, random)):
        yield {"id": f"chatcmpl-tool-{number}"} | delta


def new_id_and_name_each_chunk(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for number, delta in enumerate(all_repeated(calls, random)):
        yield delta | {"id": delta["id"] if not number else f"{delta['id']}-{number}"}


def name_late(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (call_id, name, arguments) in enumerate(calls):
        yield fragment(None, None, index=index, id=call_id)
        late = random.randrange(3)
        for number, piece in enumerate(pieces(arguments, random)):
            if number == late:
                yield fragment(None, name, index=index)
            yield fragment(piece, index=index)
        yield fragment("", name, index=index)


def name_in_pieces(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (call_id, name, arguments) in enumerate(calls):
        for number, piece in enumerate(filter(None, pieces(name, random))):
            yield fragment("", piece, index=index, **({} if number else {"id": call_id}))
        for piece in pieces(arguments, random):
            yield fragment(piece, index=index)


def name_grows(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (call_id, name, arguments) in enumerate(calls):
        for end in sorted({*random.choices(range(1, len(name)), k=2), len(name)}):
            yield fragment("", name[:end], index=index, id=call_id)
        for piece in pieces(arguments, random):
            yield fragment(piece, index=index)


def new_index_each_chunk(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for number, delta in enumerate(openai(calls, random)):
        yield delta | {"index": number}


def arguments_as_object(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """Ollama's own wire, behind a thin proxy."""
    for call_id, name, arguments in calls:
        yield fragment(json.loads(arguments), name, id=call_id)


def without_function(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (call_id, name, arguments) in enumerate(calls):
        yield {"index": index, "id": call_id, "name": name, "arguments": arguments}


def double_encoded(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """A JSON string that contains the JSON."""
    return openai([(i, n, json.dumps(a, ensure_ascii=random.random() < 0.5)) for i, n, a in calls], random)


def double_encoded_same_index(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for delta in double_encoded(calls, random):
        yield delta | {"index": 0}


def encoded_three_times(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    return double_encoded([(i, n, json.dumps(a)) for i, n, a in calls], random)


def in_a_fence(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    fences = ["```json\n{}\n```", "```\n{}```\n", " ```JSON {}\n\n```"]
    return openai([(i, n, random.choice(fences).replace("{}", a, 1)) for i, n, a in calls], random)


def white_space_around(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    return same_index([(i, n, f" \n{a}\n\n ") for i, n, a in calls], random)


def sent_again_at_the_end(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    yield from openai(calls, random)
    for index, (call_id, name, arguments) in enumerate(calls):
        yield fragment(arguments, name, index=index, id=call_id)


def objects_joined(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """Calls of one function, whose arguments a proxy has joined as it knows but one index."""
    joined: list[tuple[str, str, list[str]]] = []
    for call_id, name, arguments in calls:
        if joined and joined[-1][1] == name and arguments not in joined[-1][2]:
            joined[-1][2].append(arguments)
        else:
            joined.append((call_id, name, [arguments]))
    return openai([(call_id, name, "".join(arguments)) for call_id, name, arguments in joined], random)


def so_far(arguments: str, random: Random) -> Iterator[str]:
    sent = ""
    for piece in pieces(arguments, random):
        sent += piece
        yield sent


def cumulative(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """vercel/ai#15888"""
    for index, (call_id, name, arguments) in enumerate(calls):
        yield fragment("", name, index=index, id=call_id)
        for sent in so_far(arguments, random):
            yield fragment(sent, index=index)


def cumulative_all_repeated(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """NousResearch/hermes-agent#35718"""
    for index, (call_id, name, arguments) in enumerate(calls):
        for sent in so_far(arguments, random):
            yield fragment(sent, name, index=index, id=call_id)


def cumulative_without_ids(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (_, name, arguments) in enumerate(calls):
        for sent in so_far(arguments, random):
            yield fragment(sent, name, index=index)


MARKS = ["}", "\n</tool_call>", "<|im_end|>", "<|call|>\n", "\n```", " ]"]


def marks_behind(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """The end of a call in the model's template, which a parser has left."""
    return openai([(i, n, a + random.choice(MARKS)) for i, n, a in calls], random)


def marks_behind_all_repeated(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for index, (call_id, name, arguments) in enumerate(calls):
        for piece in (*pieces(arguments, random), random.choice(MARKS)):
            yield fragment(piece, name, index=index, id=call_id)


def fence_all_repeated(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    for _, name, arguments in calls:
        yield from (fragment(piece, name) for piece in ("```json\n" + arguments, "\n```"))


def names_of_templates(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """tontinton/maki#518, vllm-project/vllm#32633, vllm-project/vllm#32146"""
    forms = ["functions.{}", "{}<|channel|>commentary", "functions.{}:0", "{}"]
    return openai([(i, random.choice(forms).format(n), a) for i, n, a in calls], random)


def last_bracket_missing(calls: Sequence[Call], random: Random) -> Iterator[Delta]:
    """vllm-project/vllm#32152"""
    return openai([(i, n, a.rstrip("}\n")) if a.endswith('"}') else (i, n, a) for i, n, a in calls], random)


NO_DIALECTS = ("pieces", "fragment", "so_far")
DIALECTS: Sequence[Encoder] = [
    value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and name not in NO_DIALECTS
]
