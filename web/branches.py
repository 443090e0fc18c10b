"""The handlers of a thread's branches: list its states, and fork a new thread from one of them."""

import uuid

from chat.refusals import ThreadBusy
from web import fields
from web.service import Call


async def get_checkpoints(call: Call) -> None:
    await call.response.json(200, {"checkpoints": await call.threads.states(call.thread_id)})


async def post_fork(call: Call) -> None:
    """A request that names a state can fork a thread while a run is in progress on it."""
    asked = fields.fork_request(await call.json())
    branch = await call.threads.branch(call.thread_id, asked.checkpoint_id)
    if branch.in_progress:
        raise ThreadBusy(branch.run_id, branch.begun_by)
    new_id = asked.thread_id or str(uuid.uuid4())
    await call.service.per_owner.stored_bytes.check(call.owner)
    with call.service.per_owner.forks.one(call.owner) as fork:
        fork.copied = await call.service.store.fork_thread(call.owner, call.thread_id, branch.run_id, new_id)
    call.service.per_owner.stored_bytes.forget(call.owner)
    forked: dict[str, object] = {**await call.threads.summary(new_id)}
    if not call.caller.has("read"):
        del forked["title"]  # the beginning of the thread's first message
    await call.response.json(201, forked, [call.location(f"/api/threads/{new_id}")])
