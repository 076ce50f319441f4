"""What DeepSeek V4 is predicted to need, against what is there; and refusals before it is read."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest
from helpers.deepseek_v4 import FOLDER, read
from mlx.utils import tree_flatten

import dspark_mlx
from dspark_mlx.convert.__main__ import main
from dspark_mlx.convert.deepseek_v4.estimate import Estimate, memory_table, roofline_rows
from dspark_mlx.convert.deepseek_v4.forms import RECIPES, Form, Rules
from dspark_mlx.convert.target import convert_target
from dspark_mlx.errors import InputError
from dspark_mlx.load import room
from dspark_mlx.system.files import write_json
from dspark_mlx.system.memory import Memory
from dspark_mlx.targets.network import open_network

FORMS = {
    "released": (Rules(), {}),
    "mixed": (Rules(Form(8, 32), recipe=RECIPES["experts_2"]), {"recipe": "experts_2"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_the_loaded_model(tmp_path, form):
    """An estimate that forgets the scales, the head, or what is read in float32."""
    rules, settings = FORMS[form]
    more = {"quantize": True, "q_bits": 8, "q_group_size": 32} if settings else {}
    out = convert_target(FOLDER, tmp_path / "out", **settings, **more)
    estimate = Estimate.of(read("config"), rules)
    network, _ = open_network(out)
    held = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
    # Token ids are stored in 64 bits and held in 32.
    assert estimate.target - held == 2 * 512 * 2 * 4
    stored = mx.load(str(out / "model.safetensors"))
    head = sum(array.nbytes for name, array in stored.items() if name.startswith("mtp."))
    # Three gates are stored in 16 bits and held in 32.
    assert estimate.head - head == 3 * 8 * 64 * 2


def test_experts_are_read_by_expectation():
    """A forward that is said to read all experts, or one row's for all rows."""
    estimate = Estimate.of(read("config"), Rules())
    experts = sum(each.nbytes for each in estimate.outputs if each.name.startswith("layers."))
    one, two, many = (estimate.read(rows, head=False) for rows in (1, 2, 1000))
    stacks = sum(
        each.nbytes
        for each in estimate.outputs
        if each.name.startswith("layers.") and ".ffn.experts." in each.name
    )
    assert experts > stacks
    # 2 of 8 experts a row.
    assert two - one == pytest.approx(stacks * (0.25 * 0.75))
    assert many - one == pytest.approx(stacks * 0.75)


def test_caches_grow_with_the_compressed_entries():
    """Caches of one layer for all, or a window that grows."""
    estimate = Estimate.of(read("config"), Rules())
    more = estimate.caches(8192) - estimate.caches(4096)
    # Two layers each of ratios 4 (with an index of width 32) and 8; entries of width 48 in 16 bits.
    assert more == 4096 * 2 * (2 * (48 + 32) // 4 + 2 * 48 // 8)


def test_the_tables_say_that_they_are_predicted():
    """A prediction that reads as a measurement."""
    models = {"tiny": read("config")}
    table, rows = memory_table(models, 1000), roofline_rows(models, 1000)
    assert "predicted, not measured" in table.splitlines()[0] and "fits" in table
    assert "predicted, not measured" in rows and "Apple M3 Ultra 256 GB" in rows
    assert "Apple M5 Ultra" in rows and "assumed" in rows


def test_the_command_reads_a_config_alone(tmp_path, capsys):
    """Weights that must be there for an estimate; a traceback for another model."""
    (tmp_path / "config.json").write_bytes((FOLDER / "config.json").read_bytes())
    assert main(["estimate", "--from", str(tmp_path), "--context", "100"]) == 0
    found = capsys.readouterr().out
    assert re.search(r"experts_2 +0\.0", found) and "caches for 100 tokens" in found
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="model_type 'llama'"):
        main(["estimate", "--from", str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: found 0"),
        ({"hidden_size": 100}, "found a scale"),
        ({"n_routed_experts": 10**9}, "16384 or less"),
        ({"sliding_window": "12"}, "sliding_window: found '12'"),
        ({"dspark_block_size": 10**6}, "block_size 1000000"),
        ({"dspark_target_layer_ids": None}, "no dspark_target_layer_ids"),
        ({"dspark_markov_rank": "x"}, "dspark_markov_rank 'x'"),
    ],
)
def test_a_config_of_nonsense_is_no_estimate(tmp_path, change, message):
    """A traceback, an endless loop, or numbers of a model that cannot be."""
    write_json(tmp_path / "config.json", read("config") | change)
    with pytest.raises(InputError, match=message) as error:
        main(["estimate", "--from", str(tmp_path)])
    assert str(tmp_path) in str(error.value)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
    """A machine that swaps for minutes, and then refuses every request."""
    monkeypatch.setattr(room, "device_memory", lambda: Memory(10**6, 500_000, "the test"))
    with pytest.raises(InputError) as error:
        dspark_mlx.load(FOLDER, precision="stored")
    message = str(error.value)
    assert re.search(r"weights of \d{3}\.\d kB and a drafter of \d{3}\.\d kB", message)
    assert "at most 500.0 kB, which is free of the test" in message
