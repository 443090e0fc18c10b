"""The handlers of a thread's branches: the states that one can go on from, and a new thread out of one of them."""

import uuid

from access.callers import Caller
from chat import ThreadBusy
from threads.histories import Threads
from web import fields
from web.asgi import Request, Response
from web.service import Service


async def get_checkpoints(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    states = await Threads(service.store, caller.owner).states(thread_id)
    await response.json(200, {"checkpoints": states})


async def post_fork(service: Service, request: Request, response: Response, caller: Caller, thread_id: str) -> None:
    """With a state that it names, a thread can be forked while a run of it is in progress."""
    asked = fields.fork_request(await request.json(service.settings.max_body_bytes))
    threads = Threads(service.store, caller.owner)
    branch = await threads.branch(thread_id, asked.checkpoint_id)
    if branch.in_progress:
        raise ThreadBusy(branch.run_id)
    new_id = asked.thread_id or str(uuid.uuid4())
    await service.store.fork_thread(caller.owner, thread_id, branch.run_id, new_id)
    await response.json(201, await threads.summary(new_id), [("location", f"/api/threads/{new_id}")])
