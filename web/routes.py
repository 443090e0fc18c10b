"""The routes: the handler of each call, the scope that it needs, and its weight for the limits."""

from collections.abc import Mapping

from web import fields
from web.branches import get_checkpoints, post_fork
from web.chats import cancel_run, get_chat, get_run_events, post_chat, post_stream_token
from web.downloads import get_diff, get_export
from web.routing import Methods, Route, Router
from web.status import get_health, get_metrics, get_openapi, get_page, get_readiness, get_root
from web.threads import delete_old_threads, delete_thread, get_thread, get_threads, patch_thread
from web.usage import get_usage

# Of what weighs more or less than 1, docs/limits.md has the reasons.
ROUTES: Mapping[str, Methods] = {
    "/chat": {"GET": Route(get_chat, "chat", 1, fields.CHAT_QUERY, stream=True, starts=True, reader=True, load="long")},
    "/api/chat": {"POST": Route(post_chat, "chat", 1, reader=True, load="long")},
    "/api/runs/{run_id}/events": {
        "GET": Route(
            get_run_events, "read", 1, fields.EVENTS_QUERY, stream=True, own_runs=True, reader=True, load="long"
        )
    },
    "/api/runs/{run_id}/cancel": {"POST": Route(cancel_run, "chat", 0, load="none")},
    "/api/threads": {
        "GET": Route(get_threads, "read", 1, fields.THREADS_QUERY, heavier={"q": 5}),
        "DELETE": Route(delete_old_threads, "admin", 10, fields.OLD_THREADS_QUERY),
    },
    "/api/threads/{thread_id}": {
        "GET": Route(get_thread, "read", 2, fields.HISTORY_QUERY),
        "PATCH": Route(patch_thread, "chat", 1),
        "DELETE": Route(delete_thread, "admin", 2),
    },
    "/api/threads/{thread_id}/checkpoints": {"GET": Route(get_checkpoints, "read", 2)},
    "/api/threads/{thread_id}/fork": {"POST": Route(post_fork, "chat", 10)},
    "/api/threads/{thread_id}/export": {"GET": Route(get_export, "read", 5, fields.EXPORT_QUERY, load="long")},
    "/api/threads/{thread_id}/documents/{doc_id}/diff": {
        "GET": Route(get_diff, "read", 5, fields.DIFF_QUERY, load="long")
    },
    "/api/usage": {"GET": Route(get_usage, "read", 2, fields.USAGE_QUERY)},
    "/api/stream-tokens": {"POST": Route(post_stream_token, "any caller", 1)},
    "/": {"GET": Route(get_root, "anyone", 0)},
    "/debug": {"GET": Route(get_page, "anyone", 0)},
    "/openapi.json": {"GET": Route(get_openapi, "anyone", 0)},
    "/healthz": {"GET": Route(get_health, "anyone", 0)},
    "/readyz": {"GET": Route(get_readiness, "anyone", 0)},
    "/metrics": {"GET": Route(get_metrics, "anyone", 0)},
}
ROUTER = Router(ROUTES)
