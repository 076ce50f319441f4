"""The races as a table and as data."""

from __future__ import annotations

import json

import mlx.core as mx

from dspark_mlx.kernels.base import Product
from dspark_mlx.kernels.decision import Decision, Race
from dspark_mlx.kernels.report import forwards_report, forwards_table, race_report, race_table
from dspark_mlx.kernels.store import Verdict

PRODUCT = Product(8, 4096, 2560, 4, 64, mx.bfloat16)
WON = Verdict("quick", "2.00x MLX's speed", {"stock": 0.5, "quick": 0.25}, {"bad": "SIGSEGV"})
DECISION = Decision({}, [Race(PRODUCT, WON, False)], {8: Verdict("stock", "too little", {}, {})})


def test_the_table_names_winner_times_and_refusals():
    table = race_table(DECISION)
    assert "4096x2560    4     8     0.500    0.250  quick: 2.00x MLX's speed" in table
    assert "refused bad: SIGSEGV" in table
    assert "whole forward of 8 rows: stock: too little" in table


def test_the_report_is_json_with_all_that_a_race_depends_on():
    report = json.loads(json.dumps(race_report(DECISION)))
    (race,) = report["products"]
    assert race["shape"] == [4096, 2560] and race["rows"] == 8 and race["bits"] == 4
    assert race["milliseconds"] == {"stock": 0.5, "quick": 0.25}
    assert race["refused"] == {"bad": "SIGSEGV"} and "bfloat16" in race["dtype"]
    assert report["forwards"]["8"]["winner"] == "stock"


def test_races_of_compiled_forwards():
    found = {
        "8 rows": Verdict("compiled", "1.30x MLX's speed", {"stock": 2.6, "compiled": 2.0}, {})
    }
    assert forwards_table(found).endswith("8 rows: compiled: 1.30x MLX's speed")
    report = json.loads(json.dumps(forwards_report(found)))
    assert report["8 rows"]["milliseconds"] == {"stock": 2.6, "compiled": 2.0}
