"""The handlers of a thread's branches: the states that one can go on from, and a new thread out of one of them."""

import uuid

from access.callers import Caller
from chat import ForkRequest, NotFound, ThreadBusy
from threads import histories
from web.asgi import Request, Response
from web.service import Service


async def get_checkpoints(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    states = await histories.states(service.store, caller.owner, thread_id)
    if states is None:
        raise NotFound("thread")
    await response.json(200, {"checkpoints": states})


async def post_fork(service: Service, request: Request, response: Response, caller: Caller, thread_id: str) -> None:
    """With a state that it names, a thread can be forked while a run of it is in progress."""
    asked = ForkRequest.from_fields(await request.json(service.settings.max_body_bytes))
    branch = await histories.branch(service.store, caller.owner, thread_id, asked.checkpoint_id)
    if branch is None:
        raise NotFound("thread")
    if branch.in_progress:
        raise ThreadBusy(branch.run_id)
    new_id = asked.thread_id or str(uuid.uuid4())
    await service.store.fork_thread(caller.owner, thread_id, branch.run_id, new_id)
    thread = await histories.thread(service.store, caller.owner, new_id)
    if thread is None:
        raise NotFound("thread")
    await response.json(201, thread, [("location", f"/api/threads/{new_id}")])
