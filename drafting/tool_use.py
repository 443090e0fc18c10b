"""Whether a model calls the tools that it is offered. A server that ignores them is told in the log, once a model.

Nothing else tells: such a server accepts the tools and answers in plain text. The signs are chosen so that an answer to
a question is never taken for one. A model that has called a tool once is not watched any more.
"""

import logging
import re

log = logging.getLogger("draftstream.model")

DOCUMENT_CHARS = 400  # a shorter text is no document
MOST_CHARS = 20_000  # of a reply, that are looked at: its signs come earlier

# A call in the form of some model's own wire, which its server should have read.
CALL = re.compile(
    r"""\bname["']?\s*[=:]\s*["'](?:write|edit)_document["']"""
    r"|(?:function=|functions\.|tool▁sep｜>)(?:write|edit)_document"  # as DeepSeek writes it
    r"|\b(?:write|edit)_document\(\s*(?:\{|(?:title|doc_id|content)\s*=)"
)
TITLE = re.compile(r"^(?:#{1,2} \S|\*\*[^*\n]+\*\*$|[A-Z][^a-z\n]{7,}$)", re.MULTILINE)
CLAUSE = re.compile(
    r"^(?:#{1,6} )?(?:\*\*)?(?:(?:Article|Section|Clause|§) ?)?(\d{1,2})[.):]?(?:\*\*)? +\S", re.MULTILINE
)
SUB_CLAUSE = re.compile(r"^(?:#{1,6} )?(?:\*\*)?(\d{1,2})\.(\d{1,2})\.?(?:\*\*)? +\S", re.MULTILINE)
TO_FILL_IN = re.compile(r"\[[^\W\d][^\]\n]{1,60}\](?![(\[:])|_{5,}")


_NEEDED = (
    ": documents need a model and a server with tool calls (vLLM: --enable-auto-tool-choice and --tool-call-parser, "
    "llama.cpp: --jinja)"
)
CALL_AS_TEXT = "the model %s wrote a tool call into its reply as text, so its server does not read tool calls" + _NEEDED
DOCUMENT_AS_TEXT = (
    "the model %s wrote a document into its reply and called no tool, so its server may ignore tools" + _NEEDED
)


class ToolUse:
    """Remembers the models of this process that are not watched any more."""

    def __init__(self) -> None:
        self._known: set[str] = set()  # they have called a tool, or were told of

    def note(self, model: str, text: str, *, has_called: bool, has_documents: bool) -> None:
        """Look at a reply. `has_documents`: of the thread, which the reply may quote."""
        if model in self._known:
            return
        text = text[:MOST_CHARS]
        if has_called:
            self._known.add(model)
        elif CALL.search(text):
            self._known.add(model)
            log.warning(CALL_AS_TEXT, model)
        elif not has_documents and looks_like_a_document(text):
            self._known.add(model)
            log.warning(DOCUMENT_AS_TEXT, model)


def looks_like_a_document(text: str) -> bool:
    """A title, and clauses that are numbered from 1 and have either sub-clauses or places to fill in."""
    if len(text) < DOCUMENT_CHARS:
        return False
    if not TITLE.search(text):
        return False
    clauses = [int(number) for number in CLAUSE.findall(text)]
    parts = [(int(number), int(part)) for number, part in SUB_CLAUSE.findall(text)]
    has_parts = len(parts) >= 4 and parts[0] == (1, 1) and parts[-1][0] > 1 and parts == sorted(parts)
    has_clauses = len(clauses) >= 3 and clauses[0] == 1 and clauses == sorted(set(clauses))
    return has_parts or (has_clauses and len(TO_FILL_IN.findall(text)) >= 2)
