"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`. Whoever may ask a server may make it read files: give it API
keys where others can reach it."""

from __future__ import annotations

from puyulm.serve.errors import ApiError
from puyulm.serve.state import ServerState


async def load_adapter(state: ServerState, name: str, path: str) -> str:
    """Makes an adapter a model of the server.

    Raises:
        PuyuError: The name is taken, or the adapter cannot be loaded; nothing has changed then.
    """
    if name in state.names or name in state.adapters:
        raise ApiError(f"lora_name: {name!r} is taken: unload it first, or choose another name", param="lora_name")
    state.adapters[name] = path  # at once, so that a second request for the name does not come between
    try:
        await state.engine.call(lambda: state.engine.engine.load_adapter(name, path))
    except BaseException:
        del state.adapters[name]
        raise
    return f"the adapter {name!r} is loaded: ask for it as model"


async def unload_adapter(state: ServerState, name: str) -> str:
    """Forgets an adapter.

    Raises:
        PuyuError: There is none of this name (404), or requests still use it.
    """
    path = state.adapters.pop(name, None)
    if path is None:
        known = ", ".join(state.adapters) or "none"
        raise ApiError(f"lora_name: there is no adapter {name!r}; loaded: {known}", status=404, param="lora_name")
    try:
        await state.engine.call(lambda: state.engine.engine.unload_adapter(name))
    except BaseException:
        state.adapters[name] = path
        raise
    return f"the adapter {name!r} is unloaded"
