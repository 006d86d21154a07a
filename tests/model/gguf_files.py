"""Makes GGUF files as llama.cpp's converter makes them."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from puyulm.model.decoder import Decoder
from puyulm.model.layouts import published_tensors

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def tensors_of(decoder: Decoder) -> dict[str, np.ndarray]:
    """The decoder's weights with llama.cpp's names and row order."""
    parameters, config, tensors = dict(decoder.named_parameters()), decoder.config, {}
    for name, slot in published_tensors(config, "llama").items():
        value = slot.extract(parameters[slot.parameter].detach()).float().numpy()
        if "q_proj" in name or "k_proj" in name:
            value = permute(value, config.num_heads if "q_proj" in name else config.num_kv_heads)
        for published, short in GGUF_NAMES.items():
            name = name.replace(published, short)
        tensors[name] = value
    return tensors


def write(
    path: Path,
    decoder: Decoder,
    kind: Kind = Kind.F32,
    architecture: str = "llama",
    tokenizer: bool = True,
    **fields: object,
) -> Path:
    """Writes a GGUF file; `fields` are added to or replace those of `architecture`, None leaves one out."""
    config = decoder.config
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, object] = {
        "block_count": config.num_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads, "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope.theta,
        "rope.dimension_count": config.head_dim, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    } | fields  # fmt: skip
    for key, value in values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}.get(type(value))
        if add is not None:
            add(f"{architecture}.{key}", value)
    pieces = ["<unk>", "<s>", "</s>", *(chr(i) if i > 32 else f"piece {i} 中" for i in range(3, config.vocab_size))]
    if tokenizer:
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(False)
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(config.vocab_size)])
    writer.add_token_types([2, 3, 3, *[1] * (config.vocab_size - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    for name, value in tensors_of(decoder).items():
        stored = kind if value.ndim > 1 else Kind.F32
        writer.add_tensor(name, gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
