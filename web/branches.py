"""The handlers of a thread's branches: the states that one can go on from, and a new thread out of one of them."""

import uuid

from access.callers import Caller
from chat import ForkRequest
from runs.registry import ThreadBusy
from store import ThreadExists
from threads import histories
from web.asgi import Problem, Request, Response, not_found
from web.service import Service


async def get_checkpoints(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    states = await histories.states(service.store, caller.owner, thread_id)
    if states is None:
        raise not_found("thread")
    await response.json(200, {"checkpoints": states})


async def post_fork(service: Service, request: Request, response: Response, caller: Caller, thread_id: str) -> None:
    """With a state that it names, a thread can be forked while a run of it is in progress."""
    asked = ForkRequest.from_fields(await request.json(service.settings.max_body_bytes))
    branch = await histories.branch(service.store, caller.owner, thread_id, asked.checkpoint_id)
    if branch is None:
        raise not_found("thread")
    if branch.in_progress:
        raise ThreadBusy(branch.run_id)
    new_id = asked.thread_id or str(uuid.uuid4())
    try:
        await service.store.fork_thread(caller.owner, thread_id, branch.run_id, new_id)
    except ThreadExists:
        raise Problem(409, "thread_exists", "There is a thread of that name already.") from None
    thread = await histories.thread(service.store, caller.owner, new_id)
    if thread is None:
        raise not_found("thread")
    await response.json(201, thread, [("location", f"/api/threads/{new_id}")])
