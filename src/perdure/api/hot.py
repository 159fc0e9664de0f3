"""The hot route, past the framework: sending a message is what a server does all day.

FastAPI's routing, dependency solving and middlewares cost more CPU than the whole turn behind them (measured in
`docs/decisions/0005-hot-route.md`). Requests that match go straight to the handler; everything else, and every
path that is not quite right, goes to the application, which also describes the route.
"""

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Model = TypeVar("Model", bound=BaseModel)
Endpoint = Callable[[Request, str], Awaitable[Response]]


class Hot:
    """An ASGI application that answers one method on one path itself; the path's one group is the id it names."""

    def __init__(self, app: Starlette, method: str, path: str, endpoint: Endpoint):
        self._app, self._method, self._path, self._endpoint = app, method, re.compile(path), endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        found = self._path.fullmatch(scope["path"]) if scope.get("method") == self._method else None
        if found is None:
            await self._app(scope, receive, send)
            return
        request = Request({**scope, "app": self._app}, receive)
        response = await self._endpoint(request, found[1])
        await response(scope, receive, send)


def parse(model: type[Model], body: bytes) -> Model:
    """The request's body as this model. Raises RequestValidationError, as the framework would."""
    try:
        return model.model_validate_json(body or b"null")
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(problems) from error
