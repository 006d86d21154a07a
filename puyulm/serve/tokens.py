"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from puyulm.serve.errors import ApiError
from puyulm.serve.prompts import chat_ids, check_ids, in_thread, json_response, read_messages
from puyulm.serve.protocol import DetokenizeBody, TokenizeBody
from puyulm.serve.shapes import token_text
from puyulm.serve.state import ServerState


async def tokenize(state: ServerState, body: TokenizeBody) -> Response:
    """Ids of a text, or of a conversation as the model would see it.

    Raises:
        PuyuError: There is neither, or the format cannot express the conversation.
    """
    state.adapter_for(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("prompt: give either prompt or messages", param="prompt")

    def work() -> dict[str, Any]:
        if body.messages is not None:
            ids = chat_ids(state, read_messages(body.messages), tools=body.tools, answer=body.add_generation_prompt)
        else:
            ids = state.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens)
        result: dict[str, Any] = {"count": len(ids), "max_model_len": state.max_length, "tokens": ids}
        if body.return_token_strs:
            result["token_strs"] = [token_text(state.tokenizer, id) for id in ids]
        return result

    return await json_response(work)


async def detokenize(state: ServerState, body: DetokenizeBody) -> dict[str, Any]:
    """The text of ids.

    Raises:
        PuyuError: The model has no such token.
    """
    state.adapter_for(body.model)
    check_ids(state, body.tokens, "tokens")
    skip = body.skip_special_tokens
    return {"prompt": await in_thread(lambda: state.tokenizer.decode(body.tokens, skip_special=skip))}
