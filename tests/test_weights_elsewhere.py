"""Plans of a directory whose files were written again, moved, or cut into other shards: its weights, or a refusal."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorstow as ts
from tensorstow.ir.errors import PlanMismatchError
from tensorstow.ir.files import PlanFile
from tensorstow.modules import module_from_entry
from tensorstow.planner.pytorch.rebinding import rebind
from tests.planner.checkpoints import save_aligned, write

IDS = torch.tensor([[5, 9, 200, 31]])


def llama(seed: int, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=512)).eval()


def state_of(file: Path) -> dict[str, torch.Tensor]:
    """In memory of its own: the file is written again."""
    return {name: value.clone() for name, value in load_file(file).items()}


def save(model: Any, folder: Path, *, to: int = 64) -> Path:
    """`model` in one file; its bytes begin at a distance of `to` from the next multiple of 64."""
    model.save_pretrained(folder)
    save_aligned(state_of(folder / "model.safetensors"), folder / "model.safetensors", to=to)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def by_formulas(lowered: Any, *_: Any) -> Any:
    return lowered


def planned(folder: Path) -> PlanFile:
    with pytest.MonkeyPatch.context() as patch:
        from tensorstow import modules, workflow

        patch.setattr(modules, "measured_here", by_formulas)  # times are not what is looked at
        patch.setattr(workflow, "measure_fixed", lambda file: 1 << 30)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        return ts.plan(f"hf:{folder}", machine=ts.Machine.detect(dram="900KiB"), time_limit_s=2)


def ran(plan: PlanFile, model: Path | None) -> torch.Tensor:
    applied = ts.apply(plan, model)
    try:
        return logits(applied)
    finally:
        applied.tensorstow.close()


@pytest.fixture(scope="module", params=[64, 8], ids=["direct", "repacked"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A directory, its plan and what it gives; read where it lies, or repacked."""
    folder = save(llama(0), tmp_path_factory.mktemp("llama") / "of", to=request.param)
    plan = planned(folder)
    assert plan.module is not None
    assert plan.module.direct == (request.param == 64)
    return folder, plan, logits(llama(0))


@pytest.fixture
def copied(subject: Any, tmp_path: Path) -> Generator[Any]:
    """The same, with the directory as it was when the test ends."""
    folder, plan, expected = subject
    shutil.copytree(folder, tmp_path / "kept")
    yield folder, plan, expected
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", folder)


def test_files_as_they_were(subject: Any) -> None:
    folder, plan, expected = subject
    assert torch.equal(ran(plan, None), expected)
    made = module_from_entry(f"hf:{folder}", {})
    assert made.matched is not None
    assert rebind(plan.graph, plan.module, made.matched) == plan.module


def _longer_header(file: Path) -> None:
    save_file(state_of(file), file, metadata={"format": "pt", "note": "x" * 1000})


def _shorter_header(file: Path) -> None:
    save_file(state_of(file), file)


def _other_order(file: Path) -> None:
    state = state_of(file)
    names = list(state)[::-1]
    header: dict[str, Any] = {}
    data, at = b"", 0
    for name in names:
        content = state[name].contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(state[name].shape), "data_offsets": [at, at + len(content)]}
        data, at = data + content, at + len(content)
    write(file, header, data)


@pytest.mark.parametrize("change", [_longer_header, _shorter_header, _other_order])
def test_the_same_weights_written_again(copied: Any, change: Any) -> None:
    """Not the files that were planned, so the plan alone refuses them; whoever names the directory gets what is in
    it."""
    folder, plan, expected = copied
    change(folder / "model.safetensors")
    with pytest.raises(PlanMismatchError, match=r"changed after planning.*--model"):
        ts.apply(plan)
    assert torch.equal(ran(plan, folder), expected)


def test_a_directory_that_moved_as_a_whole(copied: Any, tmp_path: Path) -> None:
    folder, plan, expected = copied
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(PlanMismatchError, match="cannot be found"):
        ts.apply(plan)
    assert torch.equal(ran(plan, tmp_path / "elsewhere"), expected)


def test_other_weights_in_other_shards_beside_the_old_ones(subject: Any, tmp_path: Path) -> None:
    """The old directory is still there, and nothing of it is read."""
    _, plan, expected = subject
    other = llama(1)
    other.save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    found = ran(plan, tmp_path)
    assert torch.equal(found, logits(other))
    assert not torch.equal(found, expected)


def test_another_network_is_refused(subject: Any, tmp_path: Path) -> None:
    _, plan, _ = subject
    llama(0, layers=1).save_pretrained(tmp_path)
    with pytest.raises(PlanMismatchError, match="does not hold it; plan again"):
        ts.apply(plan, tmp_path)


def test_another_shape_is_refused(subject: Any) -> None:
    folder, plan, _ = subject
    matched = module_from_entry(f"hf:{folder}", {}).matched
    assert matched is not None
    name = plan.module.parameters[0].names[0]
    turned = replace(matched.tensors[name], shape=matched.tensors[name].shape[::-1], dtype="float16")
    with pytest.raises(PlanMismatchError, match=rf"'{name}' is .* of float32 in the plan, .* of float16"):
        rebind(plan.graph, plan.module, replace(matched, tensors={**matched.tensors, name: turned}))


def test_a_module_of_ones_own(subject: Any) -> None:
    """The plan reads one table by rows, in direct reading from a blob beside the file that holds it."""
    _, plan, _ = subject
    assert plan.module.lookups
    own = llama(2)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    expected = logits(own)
    applied: Any = ts.apply(plan, own)
    assert torch.equal(logits(applied), expected)
    applied.tensorstow.give_back()
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert torch.equal(logits(own), expected)
