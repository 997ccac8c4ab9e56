"""Tests of planner/pytorch/hf.py and hf_inputs.py, on directories that transformers itself has written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.machine import Unit
from tensorstow.planner.pytorch import lower_module, parts
from tensorstow.planner.pytorch.binding import bind, kept_names
from tensorstow.planner.pytorch.hf import fill_kept, make_skeleton, open_directory
from tensorstow.planner.pytorch.hf_inputs import example_inputs
from tensorstow.planner.pytorch.matching import computable, match
from tensorstow.planner.pytorch.on_meta import parameters_on_meta
from tensorstow.runtime.store_files import FileStore

from .hf_models import MODELS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a model by name, in shards of 30 kB; written once."""
    root = tmp_path_factory.mktemp("hf")

    def find(name: str) -> Path:
        if not (root / name).exists():
            torch.manual_seed(1)
            MODELS[name]().eval().save_pretrained(root / name, max_shard_size="30KB")
        return root / name

    return find


Saved = Callable[[str], Path]


def filled(path: Path) -> Any:
    """The module of a directory with all its weights."""
    directory = open_directory(path)
    assert directory.files is not None
    module = make_skeleton(directory)
    fill_kept(module, match(module, directory.files), list(module.state_dict()))
    return module


def same_state(a: nn.Module, b: nn.Module) -> bool:
    found, wanted = (
        {**dict(m.named_parameters(remove_duplicate=False)), **dict(m.named_buffers(remove_duplicate=False))}
        for m in (a, b)
    )
    return found.keys() == wanted.keys() and all(
        found[n].dtype == wanted[n].dtype and torch.equal(found[n], wanted[n]) for n in wanted
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_directory_becomes_what_from_pretrained_makes(saved: Saved, name: str) -> None:
    path = saved(name)
    directory = open_directory(path)
    skeleton = make_skeleton(directory)
    assert {p.device.type for n, p in skeleton.named_parameters() if n not in computable(skeleton)} == {"meta"}
    assert {b.device.type for b in skeleton.buffers()} <= {"cpu"}
    reference = directory.module_class.from_pretrained(path).eval()
    module = filled(path)
    assert same_state(module, reference)
    assert len(list(module.parameters())) == len(list(reference.parameters()))  # what is tied is tied
    assert not module.training
    assert module.config.to_dict().keys() == reference.config.to_dict().keys()
    if reference.can_generate():
        assert module.generation_config.to_dict() == reference.generation_config.to_dict()
    inputs = example_inputs(module, batch=2, length=5)
    with torch.no_grad():
        assert torch.equal(module(**inputs)[0], reference(**inputs)[0])


CACHED = ["llama", "mixtral", "mamba", "t5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "whisper"))]


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_of_a_context_is_what_a_pass_over_it_leaves(saved: Saved, name: str) -> None:
    skeleton = make_skeleton(open_directory(saved(name)))
    inputs = example_inputs(skeleton, batch=2, length=1, context=6)
    module = filled(saved(name))
    before = example_inputs(module, batch=2, length=6)
    with torch.no_grad():
        left = module(**before, use_cache=True)
        real = left.past_key_values if "past_key_values" in inputs else left.cache_params
        made = inputs.get("past_key_values", inputs.get("cache_params"))
        assert forms(made) == forms(real)
        assert module(**inputs)[0].shape == (2, 1, 96)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


def forms(value: Any) -> Any:
    """Shapes and types of all tensors of a cache, by where they are."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        return tuple(value.shape), value.dtype, type(value)
    if isinstance(value, (list, tuple)):
        return [forms(v) for v in value]
    if isinstance(value, dict):
        return {n: forms(v) for n, v in value.items()}
    return {n: forms(v) for n, v in vars(value).items()} if hasattr(value, "__dict__") else value


def test_inputs_that_cannot_be_made(saved: Saved) -> None:
    bert = make_skeleton(open_directory(saved("bert")))
    with pytest.raises(InputError, match="BertModel returns no cache of what it has read; give it no context"):
        example_inputs(bert, context=3)
    with pytest.raises(InputError, match="batch must be at least 1, got 0"):
        example_inputs(bert, batch=0)
    vars(bert)["main_input_name"] = "smells"
    with pytest.raises(InputError, match=r"BertModel takes 'smells', of which no example is known"):
        example_inputs(bert)
    assert example_inputs(make_skeleton(open_directory(saved("resnet"))), batch=3)["pixel_values"].shape[0] == 3


def test_safetensors_under_any_name_are_the_weights(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved("resnet"), tmp_path / "m")
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted((tmp_path / "m").glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (tmp_path / "m" / "model.safetensors.index.json").unlink(missing_ok=True)
    assert open_directory(tmp_path / "m").files is None
    save_file(tensors, tmp_path / "m" / "diffusion.safetensors", {"format": "pt"})
    files = open_directory(tmp_path / "m").files
    assert files is not None
    assert set(files.tensor) == set(tensors)
    save_file(tensors, tmp_path / "m" / "other.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"holds no weights: .* it holds .*diffusion\.safetensors"):
        open_directory(tmp_path / "m")


def test_other_heads_and_prefixes_are_found_as_transformers_finds_them(saved: Saved, tmp_path: Path) -> None:
    """A base model's checkpoint in a model with a head, and the other way round."""
    shutil.copytree(saved("bert"), tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    directory = open_directory(tmp_path / "bert")
    assert directory.files is not None
    with pytest.raises(InputError, match=r"but not 'cls\.predictions\.bias'"):
        match(make_skeleton(directory), directory.files)
    shutil.copytree(saved("llama"), tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    directory = open_directory(tmp_path / "llama")
    assert directory.files is not None
    module = make_skeleton(directory)
    matched = match(module, directory.files)
    assert matched.extra == ("lm_head.weight",)
    fill_kept(module, matched, list(module.state_dict()))
    assert same_state(module, transformers.LlamaModel.from_pretrained(tmp_path / "llama"))


def test_what_a_file_may_lack_is_what_the_model_computes(saved: Saved) -> None:
    directory = open_directory(saved("marian"))
    assert directory.files is not None
    skeleton = make_skeleton(directory)
    positions = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    assert computable(skeleton) == positions
    assert positions.isdisjoint(match(skeleton, directory.files).tensors)
    for name in positions:  # as if it could not be computed
        parameter = nn.Parameter(skeleton.get_parameter(name).to("meta"), requires_grad=False)
        skeleton.get_submodule(name.removesuffix(".weight")).weight = parameter
    with pytest.raises(InputError, match=r"but not 'model\.(en|de)coder\.embed_positions\.weight'"):
        match(skeleton, directory.files)


def test_a_kept_part_is_filled_and_the_rest_stays_without_memory(saved: Saved) -> None:
    directory = open_directory(saved("gpt2"))
    assert directory.files is not None
    module = make_skeleton(directory)
    matched = match(module, directory.files)
    nbytes = fill_kept(module, matched, ["transformer.ln_f.weight", "transformer.wte.weight", "lm_head.weight"])
    assert nbytes == 32 * 4 + 96 * 32 * 4
    assert module.get_parameter("lm_head.weight") is module.get_parameter("transformer.wte.weight")
    held = {n for n, p in module.named_parameters() if p.device.type == "cpu"}
    assert held == {"transformer.ln_f.weight", "transformer.wte.weight"}


@pytest.mark.parametrize("name", ["gpt2", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_a_lowered_skeleton_is_bound_to_the_bytes_of_its_files(saved: Saved, name: str) -> None:
    directory = open_directory(saved(name))
    assert directory.files is not None
    skeleton = make_skeleton(directory)
    matched = match(skeleton, directory.files)
    lowered = lower_module(skeleton, (), example_inputs(skeleton, length=4), name=name)
    unit = Unit("cpu", "dram", (("float32", 1e11),), 1e10)
    module = parts(lowered, unit)
    graph, program = bind(module.graph, module.program, matched, "direct")
    wanted = directory.module_class.from_pretrained(saved(name)).state_dict()
    placed = {n for p in program.parameters for n in p.names}
    assert placed
    assert placed | set(kept_names(skeleton, program)) >= set(wanted)
    with FileStore.open(program, directory.files.files) as store:
        for parameter in program.parameters:
            tensor = graph.tensor[parameter.tensor]
            storage = graph.storage[tensor.storage or ""]
            content = bytearray(storage.nbytes)
            store.read(storage.blob or "", storage.blob_offset, memoryview(content))
            found = bytes(content[tensor.offset : tensor.offset + tensor.nbytes])
            for n in parameter.names:
                assert found == wanted[n].contiguous().numpy().tobytes(), n


def test_types_come_from_the_config_or_the_files(saved: Saved, tmp_path: Path) -> None:
    module: Any = transformers.LlamaForCausalLM.from_pretrained(saved("llama"))
    module.to(torch.bfloat16).save_pretrained(tmp_path)
    assert same_state(filled(tmp_path), transformers.LlamaForCausalLM.from_pretrained(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_directory(tmp_path).dtype == torch.bfloat16
    directory = open_directory(tmp_path, dtype="float32")
    assert directory.files is not None
    with pytest.raises(InputError, match=r"is float32 in the module, bfloat16 in .*nothing is converted"):
        match(make_skeleton(directory), directory.files)
    with pytest.raises(InputError, match=r"int8' is no floating type"):
        open_directory(tmp_path, dtype="int8")


def _no_file(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")


def _as_it_is(folder: Path) -> None:
    del folder


@pytest.mark.parametrize("change", [_as_it_is, _no_file, _no_json])
def test_the_generation_config_is_that_of_from_pretrained(saved: Saved, tmp_path: Path, change: Any) -> None:
    """Older models have such keys in config.json, which no config that is read from there keeps."""
    shutil.copytree(saved("llama"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    beams = {"num_beams": 4, "no_repeat_ngram_size": 3}
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **beams}))
    change(tmp_path / "m")
    expected: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    skeleton: Any = make_skeleton(open_directory(tmp_path / "m"))
    assert skeleton.generation_config.to_dict() == expected.generation_config.to_dict()
    assert (skeleton.generation_config.num_beams == 4) == (change is not _as_it_is)


def test_a_generation_config_that_cannot_be(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved("llama"), tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("[1]")
    with pytest.raises(InputError, match="cannot use the generation config of"):
        make_skeleton(open_directory(tmp_path / "m"))


def test_directories_that_cannot_be_used(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"has no config.json"):
        open_directory(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        open_directory(tmp_path / "absent")
    config = json.loads((saved("llama") / "config.json").read_text())
    for change, words in (
        ({"model_type": "llama9"}, rf"transformers {transformers.__version__} cannot use .*llama9"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
        ({"num_attention_heads": 5}, "cannot use|cannot make LlamaForCausalLM"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=words):
            make_skeleton(open_directory(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot use"):
        open_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_directory(tmp_path).files is None  # a plan needs no weights
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None}))
    assert open_directory(tmp_path).module_class is transformers.LlamaForCausalLM
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the package transformers .*pip install tensorstow\[hf\]"):
        open_directory(tmp_path)


def test_damaged_weights_of_a_directory(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved("mixtral"), tmp_path / "m")
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[0]
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-100])
    with pytest.raises(InputError, match=rf"{shard.name}' ends at byte {len(raw)}, the file at {len(raw) - 100}"):
        open_directory(tmp_path / "m")
    shard.write_bytes(raw)
    name = next(n for n in load_file(shard) if "w1" in n or "w2" in n or "w3" in n)
    save_file({n: t[:-1] if n == name else t for n, t in load_file(shard).items()}, shard)
    directory = open_directory(tmp_path / "m")
    assert directory.files is not None
    with pytest.raises(InputError, match=r"is laid out otherwise in .* save_original_format=False"):
        match(make_skeleton(directory), directory.files)


def test_parameters_are_made_on_meta_and_nothing_stays_patched() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.ones(3, 3))
            self.a, self.b = weight, weight
            self.rnn = nn.LSTM(3, 3)
            self.register_buffer("table", torch.arange(4))

    before = nn.Module.register_parameter
    with parameters_on_meta():
        module = Shared()
    assert module.a is module.b
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert torch.equal(module.get_buffer("table"), torch.arange(4))
    with pytest.raises(ZeroDivisionError), parameters_on_meta():
        _ = 1 / 0
    assert nn.Module.register_parameter is before
