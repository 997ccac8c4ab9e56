"""The gap table on graphs of a few operators: budgets, machines, rows, reasons, summary."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from bench import gaps
from bench.zoo import LLAMA_TINY, Builder, Case, llama, training_graph
from bench.zoo.machines import BALANCED_SHARE, MIDDLE_SHARE, budgets_of, machine_for
from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph
from tensorstow.planner.instance import make_instance


def ladder(layers: int = 6) -> Graph:
    """Products of 64 x 64 one after another."""
    b = Builder("ladder")
    x = b.input("x", 8, 64)
    for i in range(layers):
        x = b.linear(x, 64, f"fc{i}")
    return b.build(x)


def broken() -> Graph:
    raise InputError("graph 'broken' cannot be built; choose another")


LADDER = Case("ladder", "inference", ladder, ("jetson-orin/2",))
QUICK = gaps.Options(budgets=("80", "1", "smallest"), baselines=("resident", "on-demand"), time_limit_s=60.0)


def test_budgets_are_shares_of_the_peak_and_never_below_the_smallest() -> None:
    graph = ladder()
    instance = make_instance(graph, machine_for("jetson-orin/2", graph))
    found = budgets_of(instance, ("80", "60", "1", "smallest"))
    assert list(found) == ["80%", "60%", "smallest"]
    assert found["80%"] == int(0.8 * instance.peak_of_all())
    assert found["smallest"] == max(instance.extents_nbytes)
    make_instance(graph, instance.machine.with_capacity({"dram": found["smallest"]}))
    with pytest.raises(gaps.InfeasibleError):
        make_instance(graph, instance.machine.with_capacity({"dram": found["smallest"] - 1}))


def test_two_tiers_of_a_machine_of_three() -> None:
    machine = machine_for("rtx4090/2", ladder())
    assert [t.name for t in machine.tiers] == ["hbm", "dram"]
    assert set(machine.link) == {("dram", "hbm"), ("hbm", "dram")}


def test_a_middle_tier_holds_half_of_what_is_at_home() -> None:
    graph = ladder()
    machine = machine_for("rtx4090/3", graph)
    assert [t.name for t in machine.tiers] == ["hbm", "dram", "ssd"]
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    assert machine.tier["dram"].usable_nbytes == int(MIDDLE_SHARE * homed)
    assert ("ssd", "hbm") not in machine.link


def test_a_home_is_large_enough_for_the_graph() -> None:
    graph = llama(LLAMA_TINY, sequence=1 << 21)
    assert graph.nbytes > 2 << 30  # more than the profile's memory
    assert machine_for("npu-2mib/2", graph).tier["dram"].usable_nbytes >= graph.nbytes


def test_balanced_links_move_half_the_peak_while_computing() -> None:
    graph = ladder()
    machine = machine_for("rtx4090/2~balanced", graph)
    instance = make_instance(graph, machine)
    moved = machine.link["dram", "hbm"].bytes_per_s * sum(instance.durations_ns) / 1e9
    assert moved == pytest.approx(BALANCED_SHARE * instance.peak_of_all())


@pytest.mark.parametrize("wrong", ["rtx4090", "rtx4090/4", "rtx4090/2~fast"])
def test_a_wrong_machine_is_an_error(wrong: str) -> None:
    with pytest.raises(InputError, match="is no machine"):
        machine_for(wrong, ladder())


def test_a_row_for_each_budget_with_bound_and_baselines() -> None:
    rows = list(gaps.measure(LADDER, "jetson-orin/2", QUICK))
    assert [r["budget"] for r in rows] == ["80%", "smallest"]
    for row in rows:
        assert row["status"] in ("optimal", "feasible")
        assert row["ratio"] == pytest.approx(row["simulated_s"] / row["bound_s"])
        assert row["ratio"] >= 1
        assert row["compute_s"] <= row["simulated_s"] + 1e-9
        assert set(row["baselines"]) | set(row["baseline_reasons"]) == {"resident", "on-demand"}
        assert "resident" in row["baseline_reasons"]
        assert row["speedup"] == pytest.approx(min(row["baselines"].values()) / row["simulated_s"])
        idle = row["simulated_s"] - row["compute_s"]
        assert sum(w["wait_s"] for w in row["waits"]) <= idle + 1e-9
        assert bool(row["waits"]) == (idle > 1e-9)


@pytest.mark.parametrize(
    ("case", "machine", "options", "reason"),
    [
        (Case("broken", "inference", broken, ()), "jetson-orin/2", QUICK, "cannot be built"),
        (LADDER, "jetson-orin/3", QUICK, "has no 3 tiers"),
        (LADDER, "jetson-orin/2", gaps.Options(strategies=("guess",), baselines=()), "no strategy is called 'guess'"),
    ],
)
def test_what_cannot_be_done_is_a_row_with_the_reason(
    case: Case, machine: str, options: gaps.Options, reason: str
) -> None:
    rows = list(gaps.measure(case, machine, options))
    assert rows
    for row in rows:
        assert row["status"] == "input"
        assert reason in row["reason"]
        assert "ratio" not in row


def test_every_training_budget_has_a_row() -> None:
    """A plan where the planner can, a reason where it cannot: never an error of the table."""
    build = partial(llama, LLAMA_TINY, sequence=16, logits="all")
    case = Case("tiny-train", "training", lambda: training_graph(build()), ())
    options = gaps.Options(budgets=("60", "smallest"), strategies=("on-demand",), baselines=())
    rows = list(gaps.measure(case, "rtx4090/2", options))
    assert [r["budget"] for r in rows] == ["60%", "smallest"]
    assert all(("ratio" in r) != ("reason" in r) for r in rows)


def test_the_summary_counts_rows_of_its_strategy() -> None:
    def row(ratio: float, speedup: float | None, strategy: str = "a") -> gaps.Row:
        made: gaps.Row = {"graph": "g", "machine": "m", "budget": f"{ratio}", "strategy": strategy, "ratio": ratio}
        made |= {"proven": ratio == 1.0, "best_baseline": "lru" if speedup else None}
        return made | ({"speedup": speedup} if speedup else {})

    rows = [row(1.0, 2.0), row(1.005, 8.0), row(1.02, None), row(1.3, 4.0), row(9.0, 1.0, "b")]
    rows.append({"graph": "g", "machine": "m", "budget": "", "strategy": "", "status": "input", "reason": "none"})
    found = gaps.summarise(rows, "a")
    assert found["cases"] == 4
    assert found["without_plan"] == 1
    assert (found["within_1.01"], found["within_1.03"], found["proven"]) == (0.5, 0.75, 0.25)
    assert found["median"] == pytest.approx(1.0125)
    assert (found["worst"], found["worst_case"]) == (1.3, "g m 1.3")
    assert found["speedup"] == pytest.approx(4.0)
    assert found["only_plan"] == 1
    assert gaps.summarise(rows, "c") == {"cases": 0, "without_plan": 1}


def test_the_command_prints_a_table_and_returns_rows_for_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gaps, "cases", lambda: (LADDER, Case("other", "inference", broken, ("jetson-orin/3",))))
    chosen = ["--budgets", "80", "--baselines", "on-demand", "--in-process", "--time-limit", "60"]
    result = gaps.main(["--graphs", "lad*,other", *chosen])
    assert [r["graph"] for r in result["rows"]] == ["ladder", "other"]
    json.dumps(result)
    out = capsys.readouterr().out
    assert "sim/bound" in out
    assert "no plan: other jetson-orin/3: input: graph 'broken'" in out
    assert "stow: 1 cases (1 without a plan)" in out
    assert gaps.main(["--graphs", "*", "--tiers", "2", *chosen])["rows"][0]["graph"] == "ladder"
    with pytest.raises(SystemExit, match="no case is called nothing; there are: ladder, other"):
        gaps.main(["--graphs", "nothing"])


def test_a_process_of_its_own_gives_the_same_rows() -> None:
    chosen = ["--graphs", "unet-int8", "--machines", "npu-2mib/3"]
    apart, within = (gaps.main([*chosen, *more])["rows"] for more in ([], ["--in-process"]))
    assert apart == within
    assert [r["reason"] for r in apart] == ["machine 'npu-2mib' has no 3 tiers below one another; ask for fewer"]


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(name: str) -> Graph:
        built.append(name)
        return ladder()

    two = tuple(Case(n, "inference", partial(build, n), ("jetson-orin/2",)) for n in ("a", "b"))
    monkeypatch.setattr(gaps, "cases", lambda: two)
    file = tmp_path / "gaps.json"
    chosen = ["--budgets", "80", "--baselines", "on-demand", "--in-process", "-o", str(file), "--resume"]
    assert gaps.main([*chosen, "--minutes", "-1"])["rows"] == []
    first = gaps.main([*chosen, "--graphs", "a"])["rows"]
    second = gaps.main(chosen)["rows"]
    assert built == ["a", "b"]
    assert second[:1] == first
    assert [r["graph"] for r in json.loads(file.read_bytes())["rows"]] == ["a", "b"]
    with pytest.raises(SystemExit, match="holds rows of other options"):
        gaps.main([*chosen, "--time-limit", "3"])
