"""The built-in pair end to end, in float32. Slow: it downloads the target, decodes for minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspark_mlx
from dspark_mlx.benchmark.plain import first_difference, plain_run

DATA = Path(__file__).parent.parent / "data"
TIE = 1e-3
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def decoder() -> dspark_mlx.Decoder:
    return dspark_mlx.load(precision="float32")


def tokens_of(rounds) -> list[int]:
    return [token for done in rounds for token in done.tokens]


def reference_runs() -> list[dict]:
    runs = json.loads((DATA / "smollm2_reference_greedy_fp32.json").read_text())["runs"]
    return [run for group in runs.values() for run in group]


def prompts() -> list[str]:
    lines = (DATA / "evaluation_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def assert_equal_or_tie(decoder, prompt, left, right) -> None:
    difference = first_difference(decoder.engine.target, prompt, left, right)
    assert difference is None or difference.margin < TIE, difference


def test_the_first_run_of_the_readme_answers_rightly(decoder):
    """A wrong answer as the first thing that a newcomer sees."""
    readme = (DATA.parent.parent / "README.md").read_text(encoding="utf-8")
    prompt = "Write a Python function that reverses a string."
    assert f'generate --prompt "{prompt}" --stats' in readme
    chunks = decoder.stream([{"role": "user", "content": prompt}], max_tokens=256)
    text = "".join(chunk.text for chunk in chunks)
    assert "return input_str[::-1]" in text


def test_the_embedding_example_calls_its_tool():
    """An example whose tool is never called, or with other numbers than were asked for."""
    pytest.importorskip("llguidance")
    script = DATA.parent.parent / "examples" / "embed.py"
    done = subprocess.run(
        [sys.executable, str(script), "What is 17 * 23?"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("17 * 23 = 391\n")


def test_reference_outputs_are_reproduced(decoder):
    """Guards the whole chain: GGUF, tokenizer, chat template, drafter, loop."""
    lengths, rounds_there, rounds_here = 0, 0, 0
    for run in reference_runs():
        prompt, expected = run["output_ids"][: run["num_input"]], run["output_ids"]
        message = [{"role": "user", "content": run["prompt"]}]
        assert decoder.encode(message) == prompt
        rounds = list(decoder.rounds(prompt, 128))
        assert_equal_or_tie(decoder, prompt, tokens_of(rounds), expected[run["num_input"] :])
        lengths += len(expected) - run["num_input"] - 1
        rounds_there += len(run["acceptance_lengths"])
        rounds_here += len(rounds) - 1
    # The reference ran with the first checkpoint; the shipped drafter was trained further.
    assert lengths / rounds_here > lengths / rounds_there


@pytest.mark.parametrize("text", prompts(), ids=range(len(prompts())))
def test_plain_and_speculative_equal_mlx_lm(decoder, text):
    """Guards losslessness: our plain loop and the speculative one against mlx-lm's own."""
    prompt = decoder.encode([{"role": "user", "content": text}])
    expected = plain_run(decoder.engine.target, prompt, 128, decoder.stop_tokens).tokens
    plain = tokens_of(decoder.plain().rounds(prompt, 128))
    assert plain == expected
    speculative = tokens_of(decoder.rounds(prompt, 128))
    assert_equal_or_tie(decoder, prompt, speculative, plain)
