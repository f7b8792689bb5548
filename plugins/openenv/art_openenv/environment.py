"""An environment behind an OpenEnv server: reset, step and state through its client."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import art_core as art
from art_core.base.errors import reason_of

T = TypeVar("T")
Message = dict[str, Any]
_BAD_ACTION = "VALIDATION_ERROR"
_NOT_SHOWN = frozenset({"done", "metadata", "reward"})
_TOOL = "act"


class OpenEnvEnvironment(art.Environment):
    """A task of an OpenEnv server, played through its client; each attempt has its own session.

    `url` is the server's address. If an action has one required text, each message of the model is
    that text; otherwise the model calls the tool `act` with an action's fields. `action(message)`
    replaces both: it returns the action, or None when the attempt is over. `observation(values)`
    returns the text of an observation; by default it is its fields. A scenario's field `reset`
    holds what the environment is reset with, `{"seed": 3}`. The reward is the sum of the steps'.

    A server that is down, gives no answer within `timeout` seconds or fails in a step is an
    InfrastructureError; an action that it does not accept is answered with its error.
    """

    def __init__(
        self,
        url: str,
        *,
        instructions: str = "",
        action: Callable[[Message], Mapping[str, Any] | None] | None = None,
        observation: Callable[[Mapping[str, Any]], str] | None = None,
        max_turns: int = 20,
        timeout: float = 60.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.instructions, self.max_turns, self.timeout = instructions, max_turns, timeout
        self.rewards: list[float] = []
        self.done = False
        self._action = action
        self._observation = observation or shown
        self._text_field: str | None = None
        self._client: Any = None
        self._box: art.Toolbox | None = None

    async def reset(self, scenario: Any) -> Sequence[Message]:
        """Open a session; return the first observation."""
        from openenv.core import GenericEnvClient

        limits = {"connect_timeout_s": self.timeout, "message_timeout_s": self.timeout}
        self._client = GenericEnvClient(base_url=self.url, **limits)
        if self._action is None:
            self._read(await self._asked(_action_schema(self.url, self.timeout)))
        given = scenario.get("reset") if isinstance(scenario, Mapping) else None
        result = await self._asked(self._client.reset(**dict(given or {})))
        texts = [
            text for text in (self.instructions, self._observation(result.observation)) if text
        ]
        return [{"role": "user", "content": "\n\n".join(texts) or "Begin."}]

    async def respond(self, message: Message) -> Sequence[Message] | None:
        """Take the message's actions; return what is observed, None when the episode is done."""
        if self._box is not None:
            answers = await self._box.answers(message)
            return None if self.done else answers or None
        content = message.get("content") or ""
        action = self._action(message) if self._action else {str(self._text_field): content}
        if action is None:
            return None
        text = await self._step(action)
        return None if self.done else [{"role": "user", "content": text}]

    async def score(self, trajectory: art.Trajectory) -> float:
        """Return the sum of the steps' rewards; keep the episode's id and steps."""
        state = await self._asked(self._client.state())
        kept = {name: state[name] for name in ("episode_id", "step_count") if name in state}
        trajectory.metadata |= {f"openenv_{name}": value for name, value in kept.items()}
        return float(sum(self.rewards))

    async def close(self) -> None:
        """End the session."""
        if self._client is not None:
            await self._client.close()

    def _read(self, schema: Mapping[str, Any]) -> None:
        """Choose how the model acts, by the schema of an action."""
        properties = {k: v for k, v in schema.get("properties", {}).items() if k != "metadata"}
        required = schema.get("required") or []
        if len(required) == 1 and properties[required[0]].get("type") == "string":
            self._text_field = required[0]
            return
        form = {**schema, "properties": properties}
        about = str(schema.get("description") or "Take an action.")
        self._box = art.Toolbox(
            [art.Tool(name=_TOOL, description=about, parameters=form, call=self._step)]
        )
        self.tools = self._box.schemas

    async def _step(self, action: Mapping[str, Any]) -> str:
        """Take an action; return what is observed, or the server's error about the action."""
        if self.done:
            return "error: the episode is over"
        try:
            result = await self._asked(self._client.step(dict(action)))
        except _BadActionError as error:
            return f"error: {error}"
        self.rewards.append(float(result.reward or 0.0))
        self.done = bool(result.done)
        return self._observation(result.observation)

    async def _asked(self, answer: Awaitable[T]) -> T:
        """Return the server's answer; InfrastructureError if there is none."""
        try:
            return await answer
        except RuntimeError as error:
            if _BAD_ACTION in str(error):
                raise _BadActionError(str(error)) from error
            raise self._failure(error) from error
        except Exception as error:  # sockets, timeouts, and JSON of other servers
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> art.InfrastructureError:
        what = "gave no answer" if isinstance(error, TimeoutError) else "failed"
        return art.InfrastructureError(f"the OpenEnv server {self.url} {what} ({reason_of(error)})")


class _BadActionError(Exception):
    pass


async def _action_schema(url: str, timeout: float) -> dict[str, Any]:
    import httpx

    async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
        response = await client.get(f"{url}/schema")
        schema: dict[str, Any] = response.raise_for_status().json()["action"]
        return schema


def shown(observation: Mapping[str, Any]) -> str:
    """Return an observation as text: its one field, or all of them as JSON."""
    fields = {key: value for key, value in observation.items() if key not in _NOT_SHOWN}
    values = list(fields.values())
    return values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(fields)
