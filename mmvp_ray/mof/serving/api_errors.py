"""ApiError: why a request is refused, in the status and the JSON object that OpenAI's API gives."""

from __future__ import annotations

from typing import Any

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error", 413: "invalid_request_error"}  # fmt: skip


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: Of HTTP.
        message: One line: expected, found.
        param: The field that it is about.
        code: A word for programs.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _KINDS.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """What the user has to mend."""
    return ApiError(400, message, param=param, code=code)
