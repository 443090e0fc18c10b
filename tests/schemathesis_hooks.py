"""Rules for schemathesis that no schema can express."""

from typing import Any

import schemathesis
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

# To be accepted, these have to be what the service gave or its settings name, or for the request that it saw first, or
# of a document that is named beside it.
GIVEN = {"/cursor", "/checkpoint_id", "/idempotency_key", "/version", "/Last-Event-ID", "/model"}
USAGE = {"/from", "/to"}  # the days of usage stand in an order, and lie within four digits of a year


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Its requests carry a key: with a stream token beside it they would be refused before anything else is seen."""
    for methods in raw_schema["paths"].values():
        for operation in methods.values():
            if isinstance(operation, dict):
                operation["security"] = [way for way in operation["security"] if "streamToken" not in way]


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 422:
        return True
    given = GIVEN | {"/before"} if case.method == "GET" else GIVEN  # of a history; that of a deletion is any time
    if case.operation.path == "/api/usage":
        given |= USAGE
    return not {error["pointer"] for error in response.json().get("errors", [])} <= given
