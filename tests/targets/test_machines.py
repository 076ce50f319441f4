"""DeepSeek V4's experts on several machines: the same text, and an end for all when one is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.deepseek_v4 import FOLDER, check_close, model, numbers, read
from helpers.grouped import ThreadGroup, free_ports, start_group
from helpers.pairs import TARGET, tokens_of

import dspark_mlx
from dspark_mlx.errors import InputError
from dspark_mlx.load.target import serve_experts, spreading
from dspark_mlx.profiling.pair import Pair
from dspark_mlx.targets.deepseek_v4 import machines as machines_module
from dspark_mlx.targets.deepseek_v4.machines import Machines, leaders_share

TRACES = read("loop_golden")["traces"]
SECONDS = 120


@pytest.fixture
def threads(monkeypatch):
    """Machines that are threads: gives the leader, with the others at work."""
    monkeypatch.setattr(Machines, "_sum", lambda self, a: self._group.whole.sum(self.rank, a))
    begun: list[tuple[Machines, list[threading.Thread]]] = []

    def begin(size: int) -> Machines:
        group = ThreadGroup(size)
        others = [Machines(group.member(rank)) for rank in range(1, size)]
        running = [
            threading.Thread(target=serve_experts, args=(FOLDER, each, "float32"))
            for each in others
        ]
        for each in running:
            each.start()
        leader = Machines(group.member(0))
        begun.append((leader, running))
        return leader

    yield begin
    for leader, running in begun:
        leader.stop()
        for each in running:
            each.join(SECONDS)
            assert not each.is_alive()


@pytest.mark.parametrize("size", [2, 4])
def test_a_trace_is_that_of_one_machine(threads, size):
    """An expert that nobody computes, or two do; rows that come back in another order."""
    leader = threads(size)
    decoder = dspark_mlx.load(
        FOLDER, precision="float32", scheduler="threshold:0.5", machines=leader
    )
    network = decoder.engine.target.model
    local = network.layers[0].ffn.experts.local
    assert local.gate_proj.weight.shape[0] < 8
    check_close(
        network(numbers("target_golden")["input_ids"].astype(mx.int32)),
        numbers("target_golden")["logits"],
    )
    trace = TRACES[13]
    rounds = list(decoder.rounds(trace["prompt_ids"], 64, stop_tokens=[1]))
    assert trace["prompt_ids"] + tokens_of(rounds) == trace["output_ids"]


def test_a_spread_target_has_a_profile_of_its_own(threads):
    """Rounds that are planned by what one machine needs for them."""
    leader = threads(2)
    there = dspark_mlx.load(FOLDER, precision="float32", scheduler="full", machines=leader)
    here = dspark_mlx.load(FOLDER, precision="float32", scheduler="full")
    assert Pair.of(there).key() != Pair.of(here).key()


def test_the_traffic_of_a_forward(threads):
    """More on the wires than is written in the docs."""
    leader = threads(2)
    decoder = dspark_mlx.load(FOLDER, drafter=False, precision="float32", machines=leader)
    group = leader._group.whole
    sums, before = group.sums, group.bytes
    mx.eval(decoder.engine.target.model(mx.array([[3, 4, 5, 6, 7, 8]])))
    layers, hidden, chosen = 5, 64, 2
    assert group.sums - sums == 3 * layers
    assert group.bytes - before == layers * (20 + 6 * (2 * hidden + 2 * chosen) * 4)


def test_the_leader_holds_as_much_as_the_others():
    """A leader that has everything else, and as many experts as all."""
    # 8 experts of 100 bytes; the leader alone holds 200 more: 500 each.
    assert leaders_share(8, 800, 200, 2) == 3
    assert leaders_share(8, 800, 0, 2) == 4
    assert leaders_share(8, 800, 10**6, 4) == 1
    assert leaders_share(4, 400, 0, 4) == 1


def test_experts_of_other_machines_count_nothing():
    """A row that chose none of these experts, or one twice as near the edge."""
    layer = model().layers[2].ffn
    x = mx.random.normal((1, 5, 64), key=mx.random.key(0))
    experts, weights = layer.gate(x, mx.array([[1, 2, 3, 4, 5]]))
    whole = layer.experts(x, experts, weights)
    asked = np.concatenate([np.array(part[0]) for part in (x, experts, weights)], axis=1)
    total = np.zeros((5, 64), np.float32)
    for start, stop in ((0, 1), (1, 6), (6, 8)):
        local = machines_module.RoutedExperts(64, 32, stop - start, layer.experts.activation)
        for name in ("gate_proj", "up_proj", "down_proj"):
            local[name].weight = layer.experts[name].weight[start:stop]
        total += machines_module._part(local, asked.astype(np.float32), 2, start, mx.float32)
    check_close(mx.array(total), whole[0])


def test_one_process_and_other_targets_are_refused():
    """A flag that does nothing; a target whose experts cannot be spread."""
    with pytest.raises(InputError, match="found one process"):
        Machines(ThreadGroup(1).member(0))
    with pytest.raises(InputError, match="expected a DeepSeek V4 target"):
        dspark_mlx.load(TARGET, drafter=False, machines=Machines(ThreadGroup(2).member(0)))


def test_another_target_on_a_machine_is_refused(monkeypatch):
    """Two conversions of one release whose experts are added."""
    monkeypatch.setattr(Machines, "_sum", lambda self, a: self._group.whole.sum(self.rank, a))
    group, found = ThreadGroup(2), []

    def serve():
        try:
            serve_experts(FOLDER, Machines(group.member(1)), "bfloat16")
        except InputError as error:
            found.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(InputError, match="another target, precision or version than rank 0's"):
        dspark_mlx.load(FOLDER, precision="float32", machines=Machines(group.member(0)))
    thread.join(SECONDS)
    assert len(found) == 1


def test_other_weights_of_one_config_are_told_apart(tmp_path):
    """Experts of two trainings, which are added as if they were one's."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    same = spreading(tmp_path, "float32")
    assert same == spreading(FOLDER, "float32") != spreading(FOLDER, "bfloat16")
    stored = bytearray((FOLDER / "model.safetensors").read_bytes())
    stored[len(stored) // 2 :] = bytes(len(stored) - len(stored) // 2)
    (tmp_path / "model.safetensors").write_bytes(stored)
    assert spreading(tmp_path, "float32") != same


def test_a_leader_that_cannot_load_ends_the_others(monkeypatch):
    """Machines that read 40 GB each, and then wait for one that has ended."""
    monkeypatch.setattr(Machines, "_sum", lambda self, a: self._group.whole.sum(self.rank, a))
    group, found = ThreadGroup(2), []

    def serve():
        try:
            serve_experts(FOLDER, Machines(group.member(1)))
        except InputError as error:
            found.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    leader = Machines(group.member(0))
    with pytest.raises(InputError, match="scheduler"):
        dspark_mlx.load(FOLDER, scheduler="none", machines=leader)
    leader.stop()
    thread.join(SECONDS)
    assert found and "a leader that ended" in found[0]


def test_more_machines_than_experts_are_refused():
    """A machine without an expert, whose empty arrays nothing can compute."""
    member = ThreadGroup(9).member(0)
    with pytest.raises(InputError, match="found 9 machines; expected 8 at most"):
        dspark_mlx.load(FOLDER, drafter=False, machines=Machines(member))


def test_a_machine_that_hangs_ends_the_leader(monkeypatch):
    """A forward that waits for ever; an end that does."""
    asked = threading.Event()
    monkeypatch.setattr(machines_module, "PATIENCE", 0.05)
    monkeypatch.setattr(machines_module, "_LAST", 0.05)
    monkeypatch.setattr(Machines, "_sum", lambda self, array: asked.wait(SECONDS))
    leader = Machines(ThreadGroup(2).member(0))
    with pytest.raises(InputError, match=r"no answer in 0\.05 seconds"):
        dspark_mlx.load(FOLDER, drafter=False, machines=leader)
    leader.stop()
    asked.set()


def test_an_interrupted_forward_leaves_all_in_step(threads, monkeypatch):
    """Ctrl-C between the collectives of a layer, and then another answer."""
    leader = threads(2)
    decoder = dspark_mlx.load(FOLDER, drafter=False, precision="float32", machines=leader)
    network, tokens = decoder.engine.target.model, mx.array([[3, 4, 5]])
    expected = network(tokens)
    submit = leader._thread.submit

    def interrupted(work):
        submit(work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(leader._thread, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            network(tokens)
    assert mx.array_equal(network(tokens), expected)


COMMAND = ["-m", "dspark_mlx.generate", "--model", str(FOLDER), "--distributed", "--json"]


def asked(trace: dict, max_tokens: int) -> list[str]:
    threshold = trace["confidence_threshold"]
    scheduler = f"threshold:{threshold}" if threshold else "full"
    ids = [str(token) for token in trace["prompt_ids"]]
    return [
        *COMMAND,
        "--scheduler",
        scheduler,
        "--max-tokens",
        str(max_tokens),
        "--prompt-ids",
        *ids,
    ]


@pytest.mark.slow
def test_mlx_launch_starts_it():
    """A group that MLX's own launcher cannot make; another text, or one from every machine."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    [port, *_] = free_ports(1)
    flags = ["-n", "2", "--backend", "ring", "--starting-port", str(port), "--", sys.executable]
    done = subprocess.run(
        [str(launcher), *flags, *asked(TRACES[13], 6)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, done.stdout + done.stderr
    prompt = len(TRACES[13]["prompt_ids"])
    assert json.loads(lines[0])["tokens"] == TRACES[13]["output_ids"][prompt:][:6]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("index", [0, 6, 10, 13])
def test_processes_write_the_reference_traces(tmp_path, size, index):
    """What threads of one process do not show: real sums, and ends that are waited for."""
    trace = TRACES[index]
    processes = start_group(tmp_path, size, *asked(trace, 64))
    outputs = [each.communicate(timeout=4 * SECONDS) for each in processes]
    assert [each.returncode for each in processes] == [0] * size, outputs
    assert all(not printed for printed, _ in outputs[1:])
    tokens = json.loads(outputs[0][0])["tokens"]
    assert trace["prompt_ids"] + tokens == trace["output_ids"]


def ended(processes: list[subprocess.Popen], lost: int) -> list[str]:
    """Kill a rank behind a few tokens; what the others say as they end."""
    printed = processes[0].stdout
    assert printed is not None
    trace = TRACES[13]
    expected = trace["output_ids"][len(trace["prompt_ids"]) :][:3]
    assert [int(printed.readline()) for _ in expected] == expected
    processes[lost].send_signal(signal.SIGKILL)
    said = []
    for rank, each in enumerate(processes):
        _, errors = each.communicate(timeout=SECONDS)
        if rank != lost:
            assert each.returncode == 2, errors
            said.append(errors)
    return said


@pytest.mark.parametrize(
    ("size", "lost"),
    [
        (2, 1),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
        pytest.param(4, 0, marks=pytest.mark.slow),
    ],
)
def test_a_lost_machine_ends_all(tmp_path, size, lost):
    """Machines that wait for ever for one that is gone; other tokens before that."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    prompt = [str(token) for token in TRACES[13]["prompt_ids"]]
    processes = start_group(tmp_path, size, str(script), str(FOLDER), *prompt)
    for errors in ended(processes, lost):
        assert "distributed: found a machine that was lost" in errors


ENDLESS = """
import sys
import mlx.core as mx
import dspark_mlx
from dspark_mlx.load.target import serve_experts
from dspark_mlx.targets.deepseek_v4.machines import Machines
from dspark_mlx.terminal import command

def main(argv):
    machines = Machines(mx.distributed.init())
    if not machines.leads:
        serve_experts(sys.argv[1], machines)
        return 0
    decoder = dspark_mlx.load(sys.argv[1], drafter=False, machines=machines)
    while True:
        for done in decoder.rounds([int(id) for id in sys.argv[2:]], 50, stop_tokens=[]):
            print(*done.tokens, flush=True)

command.run(main)
"""
