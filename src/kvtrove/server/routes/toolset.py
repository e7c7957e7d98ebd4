"""What of a request the model gets to see: its functions, which of them may be called, and a note on the rest.

Agents send whatever their provider offers: searches it runs, shells it was trained on. A server that refused the
request for it would serve none of them, and one that offered such a tool would promise what nobody does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvtrove.request import RequestError
from kvtrove.server.chat.conversation import AUTO, NONE, REQUIRED
from kvtrove.server.job import Job

MAX_NOTES, MAX_NAMED = 32, 4  # in the answer, in its header


class LeftOut:
    """What was left out of a request, in its own words: `tools[3]: web_search`."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def add(self, where: str, kind: str) -> None:
        self._notes.append(f"{where}: {kind:.64}")

    def note(self) -> dict[str, Any]:
        """For the answer's `kvtrove` object."""
        if not self._notes:
            return {}
        return {"left_out": self._first(MAX_NOTES)}

    def tell(self, job: Job) -> None:
        """In the answer's `kvtrove` object, and in a header."""
        if self._notes:
            job.notes |= self.note()
            job.warn("left out: " + ", ".join(self._first(MAX_NAMED)))

    def _first(self, most: int) -> list[str]:
        more = len(self._notes) - most
        return self._notes[:most] + ([f"and {more} more"] if more > 0 else [])


class Toolset:
    """The functions of one request, gathered in the order in which it names them.

    functions: in OpenAI's shape, as chat templates know them. longest: characters of a name.
    """

    def __init__(self, left_out: LeftOut, longest: int = 64) -> None:
        self.functions: list[dict[str, Any]] = []
        self._left_out, self._longest = left_out, longest
        self._skipped: set[str] = set()

    def add(self, where: str, function: Mapping[str, Any]) -> None:
        """Take a function in, without fields that are None. RequestError for a name that cannot be called."""
        name = function.get("name")
        if name is None or not re.fullmatch(rf"[a-zA-Z0-9_.-]{{1,{self._longest}}}", name):
            allowed = f"letters, digits, `_`, `-` and `.`, {self._longest} at most"
            raise RequestError(f"{where}: a function needs a name of {allowed}, not {name!r:.100}", where.split("[")[0])
        given = {field: value for field, value in function.items() if value is not None}
        self.functions.append({"type": "function", "function": given})

    def skip(self, where: str, kind: str, name: str | None) -> None:
        """Leave a tool of another kind out."""
        self._left_out.add(where, kind)
        self._skipped |= {kind, name or kind}

    def named(self, name: str) -> str:
        """The choice of one tool. RequestError when it was left out."""
        if name in self._skipped and all(tool["function"]["name"] != name for tool in self.functions):
            raise _unfit(f"{name!r:.100} is no function, and nothing else can be called here")
        return name

    def among(self, mode: str | None, names: Sequence[str | None]) -> tuple[str, tuple[str, ...]]:
        """A choice among some tools: its mode, and the functions of those. RequestError when that leaves nothing."""
        known = [tool["function"]["name"] for tool in self.functions]
        wanted = [name for name in names if name is not None and name not in self._skipped - set(known)]
        for name in wanted:
            if name not in known:
                raise _unfit(f"{name!r:.100} is not among the tools: {', '.join(known)}")
        if mode == REQUIRED and not wanted:
            raise _unfit("none of the tools that it allows is a function")
        return (mode or AUTO) if wanted else NONE, tuple(wanted)


def _unfit(why: str) -> RequestError:
    return RequestError(f"tool_choice: {why}", "tool_choice")
