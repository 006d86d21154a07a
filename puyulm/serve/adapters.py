"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`. Whoever may ask a server may make it read files: give it API
keys where others can reach it."""

from __future__ import annotations

from puyulm.serve.errors import ApiError
from puyulm.serve.state import ServerState

MAX_ADAPTERS = 64


async def load_adapter(state: ServerState, name: str, path: str) -> str:
    """Makes an adapter a model of the server.

    Raises:
        PuyuError: The name is taken, or the adapter cannot be loaded; nothing has changed then.
    """
    async with state.changing:
        if name in state.names or name in state.adapters:
            raise ApiError(f"lora_name: {name!r} is taken: unload it first, or choose another name", param="lora_name")
        if len(state.adapters) >= MAX_ADAPTERS:
            raise ApiError(f"lora_name: {MAX_ADAPTERS} adapters are loaded, which is the most: unload one first")
        await state.engine.call(lambda: state.engine.engine.load_adapter(name, path))
        state.adapters[name] = path
    return f"the adapter {name!r} is loaded: ask for it as model"


async def unload_adapter(state: ServerState, name: str) -> str:
    """Forgets an adapter.

    Raises:
        PuyuError: There is none of this name (404), or requests still use it.
    """
    async with state.changing:
        if name not in state.adapters:
            known = ", ".join(state.adapters) or "none"
            raise ApiError(f"lora_name: there is no adapter {name!r}; loaded: {known}", status=404, param="lora_name")
        await state.engine.call(lambda: state.engine.engine.unload_adapter(name))
        del state.adapters[name]
    return f"the adapter {name!r} is unloaded"
