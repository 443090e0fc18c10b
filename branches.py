"""The handlers of a thread's branches: the states that one can go on from."""

from access import Caller
from asgi import Request, Response, not_found
from service import Service


async def get_checkpoints(service: Service, _: Request, response: Response, caller: Caller, thread_id: str) -> None:
    states = await service.store.states(caller.owner, thread_id)
    if states is None:
        raise not_found("thread")
    await response.json(200, {"checkpoints": states})
