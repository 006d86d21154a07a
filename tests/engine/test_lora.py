"""Adapters against merged weights and against peft; many in one batch against each alone; and bad files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puyulm.engine.config import EngineConfig
from puyulm.engine.cpu import pack_for_inference
from puyulm.engine.engine import Engine
from puyulm.engine.lora import LoraLinear
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion
from puyulm.errors import CheckpointError, GenerationError
from puyulm.model.checkpoint import load_model, save_model
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder
from tests.engine.adapters import PREFIX, TARGETS, merge, write_adapter

FAMILIES = {
    "v1": {"family": "internlm", "num_kv_heads": 4, "qkv_bias": True, "out_bias": True},
    "v2": {"family": "internlm2"},
    "v3": {
        "family": "internlm3",
        "num_kv_heads": 1,
        "head_dim": 24,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    "llama": {"family": "llama", "tie_embeddings": True},
}
GREEDY = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, seed=5, max_new_tokens=12, ignore_eos=True)


def engine_of(decoder: Decoder, **sizes: object) -> Engine:
    return Engine(decoder, config=EngineConfig(**{"memory": 1 << 22, **sizes}))


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def packed(**shape: object) -> Decoder:
    """Whose results depend on no neighbour."""
    return pack_for_inference(tiny_decoder(seed=1, **shape))


def both(one: Completion) -> tuple[list[int], list[float]]:
    return one.ids, one.logprobs


def check_equals_merged(decoder: Decoder, merged: Decoder, folder: Path) -> None:
    engine, sequence = engine_of(decoder), prompt_of(30)
    [base] = engine.logprobs([sequence])
    engine.load_adapter("a", folder)
    [found] = engine.logprobs([sequence], adapter="a")
    [expected] = engine_of(merged).logprobs([sequence])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=2e-4, rtol=0)
    assert (torch.tensor(found) - torch.tensor(base)).abs().max() > 0.1  # the adapter does something
    [done] = engine.generate([sequence[:9]], GREEDY, adapter="a")
    [wanted] = engine_of(merged).generate([sequence[:9]], GREEDY)
    assert done.ids == wanted.ids


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_equals_merged_weights(name: str, packed: bool, tmp_path: Path) -> None:
    decoder, merged = (tiny_decoder(seed=1, **FAMILIES[name]) for _ in range(2))
    folder = write_adapter(tmp_path / "a", decoder.config, rank=4, alpha=8)
    merge(merged, folder, 8 / 4)
    check_equals_merged(pack_for_inference(decoder) if packed else decoder, merged, folder)


def test_parameters_keep_their_names(tmp_path: Path) -> None:
    """Whoever sets new weights in place need not know of adapters."""
    decoder, names = tiny_decoder(), list(dict(tiny_decoder().named_parameters()))
    engine = engine_of(decoder)
    engine.load_adapter("a", write_adapter(tmp_path / "a", decoder.config))
    engine.generate([[5]], GREEDY, adapter="a")
    assert wrapped(decoder) == 8 and list(dict(decoder.named_parameters())) == names


@pytest.mark.parametrize("target", [*TARGETS["internlm2"], *TARGETS["llama"]])
def test_each_matrix_alone(target: str, tmp_path: Path) -> None:
    """Also in Llama's layout, to which InternLM2 checkpoints are converted for training."""
    layout = "internlm2" if target in TARGETS["internlm2"] else "llama"
    decoder, merged = (tiny_decoder(seed=1) for _ in range(2))
    folder = write_adapter(tmp_path / "a", decoder.config, layout=layout, targets=[target], rank=3, alpha=24)
    merge(merged, folder, 24 / 3, layout)
    check_equals_merged(decoder, merged, folder)


def test_rank_stabilised_scale_and_patterns(tmp_path: Path) -> None:
    decoder, merged = (tiny_decoder(seed=1) for _ in range(2))
    folder = write_adapter(tmp_path / "a", decoder.config, targets=["wo"], rank=4, alpha=6, use_rslora=True)
    merge(merged, folder, 6 / math.sqrt(4))
    check_equals_merged(decoder, merged, folder)
    decoder, merged = (tiny_decoder(seed=1) for _ in range(2))
    other = write_adapter(
        tmp_path / "b", decoder.config, targets=["wo"], rank=5, alpha=6, r=8,
        rank_pattern={"attention.wo": 5}, alpha_pattern={r"layers\.\d+\.attention\.wo": 20},
    )  # fmt: skip
    merge(merged, other, 20 / 5)
    check_equals_merged(decoder, merged, other)


@pytest.mark.parametrize("name", ["v1", "v3", "llama"])
def test_an_adapter_that_peft_wrote_equals_peft(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    decoder = tiny_decoder(seed=1, **FAMILIES[name])
    save_model(decoder, tmp_path / "model", layout="llama" if name == "v1" else "own")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, rank_pattern={"q_proj": 6},
        use_rslora=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    sequence = prompt_of(24)
    with torch.no_grad():
        logits = adapted(torch.tensor([sequence])).logits[0].log_softmax(-1)
    expected = logits[:-1].gather(1, torch.tensor(sequence[1:])[:, None]).squeeze(1)
    engine = engine_of(pack_for_inference(load_model(tmp_path / "model", torch.float32).eval()))
    engine.load_adapter("a", tmp_path / "adapter")
    [found] = engine.logprobs([sequence], adapter="a")
    torch.testing.assert_close(torch.tensor(found), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_many_adapters_in_one_batch_equal_each_alone(name: str, tmp_path: Path) -> None:
    """Bit for bit, and rows without an adapter are those of an engine that never had one."""
    shape = FAMILIES[name] | {"rope": RopeConfig(scaling="dynamic", factor=2.0)}
    names = [None, "a", "b", "a", None, "c"]
    config = packed(**shape).config
    for seed, (key, targets) in enumerate({"a": None, "b": TARGETS["llama"][:2], "c": TARGETS["llama"][5:]}.items()):
        layout = None if targets is None else "llama"
        write_adapter(tmp_path / key, config, targets=targets, layout=layout, rank=3 + seed, seed=seed)
    prompts = [prompt_of(length, seed=length) for length in (20, 33, 4, 1, 9, 47)]
    params = [GREEDY, DRAWN] * 3

    def requests(engine: Engine) -> list:
        for key in ("a", "b", "c"):
            engine.load_adapter(key, tmp_path / key)
        return [engine.submit(*one, adapter=key) for *one, key in zip(prompts, params, names, strict=True)]

    engine = engine_of(packed(**shape), step_tokens=24, max_running=5)
    together = requests(engine)
    while not engine.idle:
        engine.step()
    engine.scheduler.check()
    for prompt, one, key, request in zip(prompts, params, names, together, strict=True):
        single = engine_of(packed(**shape))
        if key is not None:
            single.load_adapter(key, tmp_path / key)
        [alone] = single.generate([prompt], one, adapter=key)
        assert both(alone) == both(request.completion()), key


def test_adapters_never_share_keys_in_the_prefix_cache(tmp_path: Path) -> None:
    decoder = packed()
    for seed in (0, 1):
        write_adapter(tmp_path / str(seed), decoder.config, seed=seed)
    prompt = prompt_of(50)
    expected = []
    for folder in ("0", "1"):
        fresh = engine_of(packed())
        fresh.load_adapter("x", tmp_path / folder)
        expected.append(fresh.generate([prompt], GREEDY, adapter="x")[0])
    assert expected[0].ids != expected[1].ids
    engine = engine_of(decoder)
    [base] = engine.generate([prompt], GREEDY)
    engine.load_adapter("x", tmp_path / "0")
    for cached in (0, 48):  # its own keys are found again
        [done] = engine.generate([prompt], GREEDY, adapter="x")
        assert both(done) == both(expected[0]) and done.cached_tokens == cached
    engine.unload_adapter("x")
    engine.load_adapter("x", tmp_path / "1")  # the same name
    [done] = engine.generate([prompt], GREEDY, adapter="x")
    assert both(done) == both(expected[1]) and done.cached_tokens == 0
    [again] = engine.generate([prompt], GREEDY)
    assert both(again) == both(base) and again.cached_tokens == 48


def wrapped(decoder: Decoder) -> int:
    return sum(isinstance(module, LoraLinear) for module in decoder.modules())


def test_unloading_lets_running_requests_end_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    decoder = packed()
    before = dict(decoder.named_modules())
    folder = write_adapter(tmp_path / "a", decoder.config, targets=["wqkv"])
    engine, prompt = engine_of(decoder), prompt_of(20)
    engine.load_adapter("a", folder)
    assert engine.adapters.names == ["a"]
    [expected] = engine.generate([prompt], GREEDY, adapter="a")
    assert wrapped(decoder) == 2
    request = engine.submit(prompt, GREEDY, adapter="a")
    for _ in range(4):
        engine.step()
    engine.unload_adapter("a")
    assert engine.adapters.names == []
    with pytest.raises(GenerationError, match="no adapter 'a' is loaded"):
        engine.submit(prompt, GREEDY, adapter="a")
    while not request.finished:
        engine.step()
    assert both(request.completion()) == both(expected)
    del request
    engine.generate([prompt], GREEDY)
    assert wrapped(decoder) == 0 and dict(decoder.named_modules()) == before and not engine.adapters.active


def test_preemption_of_requests_with_an_adapter_that_is_gone(tmp_path: Path) -> None:
    """Blocks for two sequences only: one is thrown out and computed again, after the adapter was unloaded."""
    decoder = packed()
    folder = write_adapter(tmp_path / "a", decoder.config)
    prompts, params = [prompt_of(30, seed) for seed in range(3)], GREEDY.evolve(max_new_tokens=40)
    whole = engine_of(decoder)
    whole.load_adapter("a", folder)
    expected = whole.generate(prompts, params, adapter="a")
    block = 2 * 2 * 2 * 16 * 16 * 4
    engine = engine_of(packed(), memory=9 * block)
    engine.load_adapter("a", folder)
    requests = [engine.submit(prompt, params, adapter="a") for prompt in prompts]
    engine.step()
    engine.unload_adapter("a")
    while not engine.idle:
        engine.step()
    assert engine.scheduler.preemptions > 0
    assert [request.completion().ids for request in requests] == [one.ids for one in expected]


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def drop(part: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def damage(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX}model.layers.0.attention.wo.lora_B.weight"][1, 2] = math.nan


def add(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({f"{PREFIX}{name}": torch.zeros(4)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "uses DoRA"),
        ({"modules_to_save": ["output"]}, "modules_to_save"),
        ({"bias": "all"}, "changes biases"),
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights"),
        ({"r": 8}, "has shape [4, 64], but this model and adapter_config.json ask for [8, 64]"),
        ({"r": 0}, "r must be a positive whole number"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number"),
        ({"rank_pattern": {"(": 3}}, "damaged pattern"),
        ({"change": drop("layers.1.attention.wo.lora_B")}, "lora_B of layers.1.attention.wo is missing"),
        ({"change": drop("layers.1.")}, "nothing for layers.1.attention.wqkv"),
        ({"change": rename("layers.1.", "layers.7.")}, "in this internlm2 model of 2 layers"),
        ({"change": rename("attention.wqkv", "attention.Wqkv")}, "Was it made for another base?"),
        ({"change": rename("w1.lora_A.weight", "w1.lora_magnitude_vector")}, "merge the adapter"),
        ({"change": add("model.tok_embeddings.lora_embedding_A")}, "tok_embeddings.lora_embedding_A"),
        ({"change": add("output.lora_A.weight")}, "adapts output, which cannot be adapted"),
        ({"change": damage}, "not numbers"),
        ({"change": dict.clear}, "holds no tensors"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be_used_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    engine = engine_of(tiny_decoder())
    folder = write_adapter(tmp_path / "a", engine.model.config, **options)
    with pytest.raises(CheckpointError) as caught:
        engine.load_adapter("a", folder)
    assert message in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not engine.adapters.names and not engine.adapters.active


def test_another_base_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", tiny_decoder(hidden_size=96).config)
    with pytest.raises(CheckpointError, match=r"lora_B of layers.0.attention.wo has shape \[96, 4\], .* \[64, 4\]"):
        engine_of(tiny_decoder()).load_adapter("a", wide)
    second = write_adapter(tmp_path / "v2", tiny_decoder().config)
    with pytest.raises(CheckpointError, match=r"adapts model.layers.0.attention.wo, .* internlm3 model .*q_proj"):
        engine_of(tiny_decoder(**FAMILIES["v3"])).load_adapter("a", second)


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    engine = engine_of(tiny_decoder())
    with pytest.raises(CheckpointError, match="no such folder"):
        engine.load_adapter("a", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no adapter_config"):
        engine.load_adapter("a", tmp_path)
    folder = write_adapter(tmp_path / "a", engine.model.config)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        engine.load_adapter("a", folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        engine.load_adapter("a", folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        engine.load_adapter("a", folder)
    (folder / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        engine.load_adapter("a", folder)


def test_names_are_taken_once(tmp_path: Path) -> None:
    engine = engine_of(tiny_decoder())
    folder = write_adapter(tmp_path / "a", engine.model.config)
    engine.load_adapter("a", folder)
    with pytest.raises(GenerationError, match="'a' is loaded already"):
        engine.load_adapter("a", folder)
    with pytest.raises(GenerationError, match="needs a name"):
        engine.load_adapter("", folder)
    with pytest.raises(GenerationError, match=r"no adapter 'b' is loaded \(there are: a\)"):
        engine.unload_adapter("b")


def test_a_model_split_over_processes_is_refused(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    folder = write_adapter(tmp_path / "a", decoder.config)
    decoder.layers[1].mlp.down = torch.nn.Linear(48, 64)
    with pytest.raises(GenerationError, match="split over several processes"):
        engine_of(decoder).load_adapter("a", folder)


def test_weights_in_the_old_file_format(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    decoder, merged = (tiny_decoder(seed=1) for _ in range(2))
    folder = write_adapter(tmp_path / "a", decoder.config)
    merge(merged, folder, 2.0)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    check_equals_merged(decoder, merged, folder)


def test_a_second_engine_of_a_model_has_nothing_of_the_firsts_adapters(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    config = EngineConfig(memory=1 << 20)
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    expected = Engine(decoder, config=config).generate([[5, 6, 7]], params)[0].ids
    first = Engine(decoder, config=config)
    first.load_adapter("a", write_adapter(tmp_path / "a", decoder.config))
    assert first.generate([[5, 6, 7]], params, adapter="a")[0].ids != expected
    assert Engine(decoder, config=config).generate([[5, 6, 7]], params)[0].ids == expected


def test_two_engines_of_a_model_with_adapters_of_their_own(tmp_path: Path) -> None:
    """In turns, step by step, and unloaded in the order in which they came."""
    decoder, prompt = packed(), prompt_of(20)
    before = dict(decoder.named_modules())
    expected, engines = [], []
    for number, targets in enumerate((["wqkv", "wo"], ["wo", "w1"])):
        folder = write_adapter(tmp_path / str(number), decoder.config, seed=number, targets=targets)
        alone = engine_of(packed())
        alone.load_adapter("x", folder)
        expected += alone.generate([prompt], GREEDY, adapter="x")
        engines.append(engine_of(decoder))
        engines[-1].load_adapter("x", folder)
    requests = [engine.submit(prompt, GREEDY, adapter="x") for engine in engines]
    while not all(request.finished for request in requests):
        for engine in engines:
            engine.step()
    assert [both(request.completion()) for request in requests] == [both(one) for one in expected]
    assert wrapped(decoder) == 6 and expected[0].ids != expected[1].ids
    del requests
    for engine, left in zip(engines, (4, 0), strict=True):
        engine.unload_adapter("x")
        engine.generate([prompt], GREEDY)
        assert wrapped(decoder) == left
        if left:
            assert both(engines[1].generate([prompt], GREEDY, adapter="x")[0]) == both(expected[1])
    assert dict(decoder.named_modules()) == before
