"""A reply while it arrives: its pieces for the reader, and its part of the state."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from chat import Doc, Document, Message, Piece
from drafting.deltas import ModelDelta, ModelError, ToolCallDelta
from drafting.editing.edits import Edit
from drafting.editing.versions import Documents
from drafting.reply import Reply
from drafting.tools import edit_call


class Desk:
    """A reply on a desk of its own, and the pieces that it gave out."""

    def __init__(self, versions: Sequence[Document] = ()) -> None:
        self.pieces: list[Piece] = []
        self.reply = Reply(Documents(versions), 0, self.pieces.extend)

    def feed(self, *deltas: ModelDelta) -> "Desk":
        for delta in deltas:
            self.reply.feed([delta])
        return self

    def close(self, *, finished: bool = True) -> "Desk":
        self.reply.close(finished=finished)
        return self

    @property
    def items(self) -> list[tuple[str, str]]:
        """(kind and version, text) of each item."""
        items: dict[int, tuple[str, str]] = {}
        for piece in self.pieces:
            kind = f"{piece.doc_id} v{piece.version}" if isinstance(piece, Doc) else "message"
            items[piece.item] = (kind, items.get(piece.item, ("", ""))[1] + piece.content)
        assert list(items) == sorted(items) == list(range(len(items)))
        order = [piece.item for piece in self.pieces]
        assert order == sorted(order), "items are mixed"
        return list(items.values())

    @property
    def answers(self) -> list[dict[str, object]]:
        return [json.loads(call.answer) for call in self.reply.calls]


def write(title: str, content: str, index: int = 0, size: int = 7, *, order: str = "tc") -> list[ModelDelta]:
    fields = {"title": title, "content": content}
    ordered = fields if order == "tc" else dict(reversed(fields.items()))
    return call("write_document", json.dumps(ordered), index, size)


def call(name: str, arguments: str, index: int = 0, size: int = 7) -> list[ModelDelta]:
    cuts = [arguments[start : start + size] for start in range(0, len(arguments), size)] or [""]
    return [
        ToolCallDelta(index, "" if number else f"call-{index}", "" if number else name, fragment)
        for number, fragment in enumerate(cuts)
    ]


def edit(doc_id: str, *edits: tuple[str, str], index: int = 0) -> list[ModelDelta]:
    pairs = [{"find": find, "replace": replacement} for find, replacement in edits]
    return call("edit_document", json.dumps({"doc_id": doc_id, "edits": pairs}), index)


def document(content: str, version: int = 1, *, doc_id: str = "d1", complete: bool = True) -> Document:
    return {"doc_id": doc_id, "title": "NDA", "version": version, "content": content, "complete": complete}


def test_text_before_between_and_after_calls_keeps_its_place() -> None:
    desk = Desk().feed(
        "One ", "moment.", *write("NDA", "# NDA"), "Now ", "the lease.", *write("Lease", "# L", 1), "Done."
    )
    desk.close()
    assert desk.items == [
        ("message", "One moment."),
        ("d1 v1", "# NDA"),
        ("message", "Now the lease."),
        ("d2 v1", "# L"),
        ("message", "Done."),
    ]
    assert desk.reply.text == "One moment.Now the lease.Done."
    assert [answer["doc_id"] for answer in desk.answers] == ["d1", "d2"]


def test_the_first_characters_of_a_document_come_at_once() -> None:
    desk = Desk().feed(ToolCallDelta(0, "c", "write_document", '{"title":"NDA","content":"The'))
    assert desk.pieces == [Doc("The", 0, "d1", "NDA", 1)]


def test_a_fragment_for_a_call_that_was_carried_out_fails_the_reply() -> None:
    desk = Desk().feed(*write("A", "text"), *write("B", "text", 1))
    desk.feed(ToolCallDelta(0, "", "", " \n"))
    with pytest.raises(ModelError) as failed:
        desk.feed(ToolCallDelta(0, "", "", '{"title": "C"}'))
    assert failed.value.code == "model_protocol"
    assert [text for _, text in desk.close(finished=False).items] == ["text", "text"]


@pytest.mark.parametrize("rest", ["}", "x", '"'])
@pytest.mark.parametrize("cut", [0, 1])
def test_text_behind_the_arguments_breaks_the_call_whatever_the_cut(rest: str, cut: int) -> None:
    whole = json.dumps({"title": "A", "content": "text"})
    pieces = [whole, rest] if cut else [whole + rest]
    desk = Desk().feed(*(ToolCallDelta(0, "a", "write_document", piece) for piece in pieces)).close()
    assert "not valid JSON" in str(desk.answers[0]["error"])
    assert desk.reply.unfinished == {0}


def test_each_call_of_a_reply_has_an_id_of_its_own() -> None:
    heads = [ToolCallDelta(number, "same", "write_document", "{}") for number in range(3)]
    ids = [call.call_id for call in Desk().feed(*heads).close().reply.calls]
    assert len(set(ids)) == 3
    assert ids[0] == "same"


def test_content_before_its_title_waits_for_it() -> None:
    desk = Desk().feed(*write("NDA", "# NDA\n\ntext", order="ct")).close()
    assert desk.items == [("d1 v1", "# NDA\n\ntext")]
    assert desk.reply.new_documents[0]["title"] == "NDA"


@given(st.randoms(use_true_random=False), st.integers(1, 11))
def test_interleaved_calls_come_out_one_after_the_other(random: "object", size: int) -> None:
    from random import Random

    assert isinstance(random, Random)
    queues = [write(f"Doc {index}", f'text "{index}" \\ 😀' * 5, index, size) for index in range(3)]
    desk = Desk()
    while any(queues):
        queue = random.choice([queue for queue in queues if queue])
        desk.feed(queue.pop(0))
    desk.close()
    texts = {call.arguments["title"]: call.arguments["content"] for call in desk.reply.calls}
    assert texts == {f"Doc {index}": f'text "{index}" \\ 😀' * 5 for index in range(3)}
    assert sorted(text for _, text in desk.items) == sorted(texts.values())
    assert [d["content"] for d in desk.reply.new_documents] == [text for _, text in desk.items]


def test_a_title_in_use_makes_a_new_version() -> None:
    desk = Desk([document("one")]).feed(*write("NDA", "two"), *write("NDA", "three", 1)).close()
    assert desk.items == [("d1 v2", "two"), ("d1 v3", "three")]


def test_an_edit_gives_the_new_version_whole() -> None:
    desk = Desk([document("The term is one year. The law is X.")])
    desk.feed(*edit("d1", ("one year", "two years"), ("X", "Y"))).close()
    assert desk.items == [("d1 v2", "The term is two years. The law is Y.")]
    assert desk.answers == [{"doc_id": "d1", "title": "NDA", "version": 2}]


def test_a_document_that_is_named_keeps_its_id_under_a_new_title() -> None:
    for fields in (
        {"doc_id": "d1", "title": "Mutual NDA", "content": "new"},
        {"title": "Mutual NDA", "doc_id": "NDA", "content": "new"},
        {"content": "new", "doc_id": "d1", "title": "Mutual NDA"},
    ):
        desk = Desk([document("old")]).feed(*call("write_document", json.dumps(fields))).close()
        assert desk.items == [("d1 v2", "new")]
        assert desk.answers == [{"doc_id": "d1", "title": "Mutual NDA", "version": 2}]
        assert desk.reply.calls[0].arguments == {"title": "Mutual NDA", "doc_id": "d1", "content": "new"}
        assert {piece.title for piece in desk.pieces if isinstance(piece, Doc)} == {"Mutual NDA"}


def test_a_document_that_is_named_needs_no_title() -> None:
    arguments = json.dumps({"doc_id": "d1", "content": "new"})
    desk = Desk([document("old")]).feed(*call("write_document", arguments)).close()
    assert desk.answers == [{"doc_id": "d1", "title": "NDA", "version": 2}]
    desk = Desk([document("old")]).feed(*call("write_document", arguments.replace("d1", "d7"))).close()
    assert "needs a title" in str(desk.answers[0]["error"])


def test_a_new_title_comes_as_a_new_version() -> None:
    arguments = json.dumps({"doc_id": "d1", "title": "Mutual NDA"})
    desk = Desk([document("text")]).feed(*call("edit_document", arguments)).close()
    assert desk.pieces == [Doc("text", 0, "d1", "Mutual NDA", 2)]
    assert desk.answers == [{"doc_id": "d1", "title": "Mutual NDA", "version": 2}]


def test_the_state_keeps_the_arguments_of_an_edit_as_the_tool_asks_for_them() -> None:
    """The model reads them again, and learns from them."""
    odd = {"id": "NDA", "edits": json.dumps({"old_string": "text", "new_string": "paper"})}
    desk = Desk([document("text")]).feed(*call("edit_document", json.dumps(odd))).close()
    assert desk.reply.calls[0].arguments == {"doc_id": "d1", "edits": [{"find": "text", "replace": "paper"}]}


@pytest.mark.parametrize("edits", [[{"find": "text", "replace": "paper"}], '{"old": "text", "new": "paper"}'])
def test_arguments_that_were_encoded_twice_are_taken(edits: object) -> None:
    arguments = json.dumps(json.dumps({"document": "NDA", "edits": edits}))
    assert Desk([document("text")]).feed(*call("edit_document", arguments)).close().items == [("d1 v2", "paper")]


def test_an_edit_in_one_reply_with_writes_counts_the_versions_as_they_come() -> None:
    desk = Desk().feed(*write("NDA", "a b"), *edit("d1", ("b", "c"), index=1), *write("NDA", "new", 2)).close()
    assert desk.items == [("d1 v1", "a b"), ("d1 v2", "a c"), ("d1 v3", "new")]


@pytest.mark.parametrize(
    ("deltas", "reason"),
    [
        (edit("d1", ("missing", "x")), "does not stand in the document"),
        (edit("d1", ("once", "once")), "it changes nothing"),
        (edit("d1", ("twice twice once", "")), "would leave an empty document"),
        (edit("d1", ("twice", "x")), "stands 2 times"),
        (edit("d1", ("", "x")), "find is empty"),
        (edit("d9", ("once", "x")), "There is no document 'd9'; there are: d1"),
        (edit("d1"), "a list of edits"),
        (call("edit_document", '{"doc_id":"d1","edits":[{"find":1}]}'), "find and replace"),
        (call("edit_document", '{"doc_id":"d1"'), "not valid JSON"),
        (call("edit_document", '{"doc_id":"d1","doc_id":"d1","edits":[]}'), "stands twice"),
        (call("write_document", '{"title":"NDA"}'), "needs a title and a content"),
        (call("write_document", '{"title":"NDA","content":""}'), "needs a title and a content"),
        (call("write_document", '{"content":"text"}'), "needs a title and a content"),
        (call("write_document", "not json"), "not valid JSON"),
        (call("delete_everything", "{}"), "There is no tool 'delete_everything'"),
        (call("", ""), "not valid JSON"),
    ],
)
def test_a_call_that_cannot_be_carried_out_is_answered_and_changes_nothing(
    deltas: list[ModelDelta], reason: str
) -> None:
    desk = Desk([document("twice twice once")]).feed(*deltas).close()
    assert reason in str(desk.answers[0]["error"])
    assert desk.pieces == []
    assert desk.reply.new_documents == []
    assert desk.reply.calls[0].name in ("edit_document", "write_document", "delete_everything", "unknown")


def test_a_failed_call_does_not_hold_up_the_next() -> None:
    desk = Desk().feed(*call("write_document", "{oops"), *write("NDA", "text", 1), "after").close()
    assert desk.items == [("d1 v1", "text"), ("message", "after")]


def test_a_document_that_breaks_off_is_kept_and_marked() -> None:
    desk = Desk().feed("Here:", *write("NDA", "a long text that", size=5)[:-1]).close(finished=False)
    [kept] = desk.reply.new_documents
    assert not kept["complete"]
    assert desk.items == [("message", "Here:"), ("d1 v1", kept["content"])]
    assert desk.reply.unfinished == {1}
    assert "broke off" in str(desk.answers[0]["error"])
    assert desk.reply.calls[0].arguments == {"title": "NDA", "content": kept["content"]}


def test_an_edit_of_a_version_that_broke_off_is_incomplete_until_one_takes_in_its_end() -> None:
    broken = [document("whole text"), document("# NDA\n\nThe Receiving Par", 2, complete=False)]
    desk = Desk(broken).feed(*edit("d1", ("# NDA", "# Mutual NDA"))).close()
    assert desk.items == [("d1 v3", "# Mutual NDA\n\nThe Receiving Par")]
    assert desk.answers == [{"doc_id": "d1", "title": "NDA", "version": 3, "complete": False}]
    assert desk.reply.unfinished == {0}
    desk = Desk([*broken, *desk.reply.new_documents]).feed(*edit("d1", ("The Receiving Par", "The Receiving Party.")))
    assert desk.close().items == [("d1 v4", "# Mutual NDA\n\nThe Receiving Party.")]
    assert desk.answers == [{"doc_id": "d1", "title": "NDA", "version": 4}]
    assert desk.reply.unfinished == set()


def test_the_model_is_told_the_last_words_of_a_version_that_broke_off() -> None:
    last = "the Discloser may ask the Recipient to return all copies, and the Recip"
    content = f"1.1 Recipient\n\n{'More words. ' * 40}\n\n2.1 On termination {last}"
    for deltas in (write("NDA", content)[:-1], edit("d1", ("not there", "x"))):
        desk = Desk([document(content, complete=False)]).feed(*deltas).close(finished=False)
        told = str(desk.answers[0]["error"]).split("It ends with this text:\n")[1].splitlines()[0]
        assert content.count(told) == 1
        assert told in last
        assert desk.reply.new_documents == [] or desk.reply.new_documents[0]["content"].endswith(told)


def test_a_reply_that_is_cut_leaves_its_last_message_unfinished() -> None:
    desk = Desk().feed("Half a sen").close(finished=False)
    assert desk.reply.unfinished == {0}
    assert Desk().feed("All.").close().reply.unfinished == set()
    assert desk.pieces == [Message("Half a sen", 0)]


def test_what_no_text_can_hold_is_replaced_alike_in_the_stream_and_in_the_state() -> None:
    desk = Desk().feed(*call("write_document", '{"title":"N\\u0000DA","content":"a\\ud83d\\u0000b"}', size=2)).close()
    [kept] = desk.reply.new_documents
    assert desk.items == [("d1 v1", kept["content"])]
    assert kept["content"] == "a\ufffd\ufffdb"
    assert kept["title"] == "N\ufffdDA"
    edits = edit_call('{"doc_id":"d1","edits":[{"find":"\\ud83d","replace":"\\u0000"}]}').edits
    assert edits == (Edit("\ufffd", "\ufffd"),)


def nested(levels: int) -> str:
    return '{"doc_id":"d1","edits":' + "[" * levels + "]" * levels + "}"


NUMBERS = st.integers() | st.integers(60, 70).map(lambda bits: 2**bits) | st.floats()
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["title", "content", "doc_id", "edits"]), inner),
)


@given(
    st.sampled_from(["write_document", "edit_document", "", "nonsense \0"]),
    ANYTHING.map(json.dumps) | st.text(),
    st.integers(0, 3),
    st.sampled_from([1, 7, 1000]),
    st.booleans(),
)
@example("edit_document", nested(249), 0, 1000, True)
@example("edit_document", nested(250), 0, 1000, True)
@example("edit_document", nested(50_000), 0, 1000, True)
@example("nonsense", json.dumps({"a": 2**64}), 0, 1000, True)
@example("nonsense", '{"a":1' + "1" * 5000 + "}", 0, 1000, True)
def test_whatever_a_model_calls_it_is_answered_and_the_state_can_keep_it(
    name: str,
    arguments: str,
    missing: int,
    size: int,
    finished: bool,  # noqa: FBT001  # hypothesis gives it so
) -> None:
    """`missing`: so many characters of the arguments did not come."""
    deltas = call(name, arguments[: len(arguments) - missing], size=size)
    desk = Desk([document("whole text")]).feed(*deltas).close(finished=finished)
    [made] = desk.reply.calls
    assert desk.answers[0].keys() in ({"error"}, {"doc_id", "title", "version"})
    assert "error" not in desk.answers[0] or desk.pieces or "Nothing was changed." in str(desk.answers[0]["error"])
    kept = AIMessage("", tool_calls=[{"id": made.call_id, "name": made.name, "args": made.arguments}])
    assert JsonPlusSerializer().dumps_typed([kept])
    assert [text for _, text in desk.items] == [text["content"] for text in desk.reply.new_documents]
    assert desk.pieces == [] or "error" not in desk.answers[0] or desk.reply.unfinished == {0}
