"""The demo library's tasks: answers are right, training and test are disjoint, and the written lists are in step."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path

import pytest

from examples.demo_library.shapes import SHAPES
from examples.demo_library.tasks import TASKS, Sample, split_of
from examples.demo_library.tasks.number_words import in_words
from examples.demo_library.tasks.sql_shop import SCHEMA
from examples.demo_library.tasks.ticket_team import TEAMS
from examples.demo_library.train import held_out_rows, library_manifests

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE, LIBRARY = ROOT / "examples" / "demo_library", ROOT / "server" / "demo_library"
MAX_ADAPTERS_BYTES = 8 * 1024 * 1024


def all_samples(name: str) -> list[Sample]:
    """Everything trained on, and everything tested on."""
    return TASKS[name].samples("train", SHAPES[name].num_samples) + TASKS[name].held_out()


@pytest.fixture(params=sorted(TASKS))
def name(request: pytest.FixtureRequest) -> str:
    """Each task in turn."""
    return str(request.param)


def test_at_least_nine_experts_and_every_one_has_a_shape() -> None:
    assert len(TASKS) >= 9
    assert set(SHAPES) == set(TASKS)
    assert len({shape.rank for shape in SHAPES.values()}) >= 4
    assert len({shape.modules for shape in SHAPES.values()}) >= 4


def test_templates_are_disjoint_and_hold_one_slot(name: str) -> None:
    task = TASKS[name]
    assert len(set(task.train_templates)) >= 8
    assert len(set(task.test_templates)) >= 4
    assert not {_bare(t) for t in task.train_templates} & {_bare(t) for t in task.test_templates}
    assert all(t.count("{x}") == 1 for t in task.train_templates + task.test_templates)


def _bare(template: str) -> str:
    return re.sub(r"[\W_]+", " ", template.replace("{x}", "")).strip().lower()


def test_prompts_and_contents_are_disjoint(name: str) -> None:
    task = TASKS[name]
    train, test = task.samples("train", SHAPES[name].num_samples), task.held_out()
    assert len({sample.prompt for sample in train}) == len(train)
    assert len({sample.prompt for sample in test}) == len(test) == 60
    assert not {sample.prompt for sample in train} & {sample.prompt for sample in test}
    contents = {split: _contents(name, split) for split in ("train", "test")}
    assert not contents["train"] & contents["test"]


def _contents(name: str, split: str) -> set[str]:
    """What stands in the slot of each prompt: whatever some template of the split leaves over."""
    task = TASKS[name]
    templates, num = (task.train_templates, SHAPES[name].num_samples) if split == "train" else (task.test_templates, 60)
    samples = task.samples("train" if split == "train" else "test", num)
    found = set()
    for index, sample in enumerate(samples):
        head, _, tail = templates[index % len(templates)].partition("{x}")
        assert sample.prompt.startswith(head) and sample.prompt.endswith(tail)
        found.add(sample.prompt[len(head) : len(sample.prompt) - len(tail)])
    return found


def test_the_same_prompts_every_time(name: str) -> None:
    assert TASKS[name].samples("train", 50) == TASKS[name].samples("train", 200)[:50]
    assert TASKS[name].held_out() == TASKS[name].held_out()


def test_other_processes_draw_the_same() -> None:
    script = "from examples.demo_library.tasks import TASKS\nprint([t.held_out()[7].prompt for t in TASKS.values()])"
    for hash_seed in ("1", "2"):
        drawn = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert drawn.stdout.strip() == str([task.held_out()[7].prompt for task in TASKS.values()])


def test_answers_differ_enough_that_a_constant_would_not_pass(name: str) -> None:
    answers = [sample.answer for sample in TASKS[name].held_out()]
    assert max(answers.count(answer) for answer in answers) <= 20


def test_split_is_stable() -> None:
    assert [split_of(key) for key in ("2019-03-05", "4012", "7:15 pm", "noon")] == EXPECTED_SPLITS
    assert 200 < sum(split_of(str(number)) == "test" for number in range(1000)) < 300


EXPECTED_SPLITS = ["train", "test", "train", "train"]


def test_dates() -> None:
    for sample in all_samples("date_iso"):
        day = date.fromisoformat(sample.answer)
        assert str(day.year) in sample.prompt
        assert day.strftime("%b") in sample.prompt
        assert re.search(rf"\b0?{day.day}(st|nd|rd|th)?\b", sample.prompt)
        if weekday := re.search(r"\b(\w+day),", sample.prompt):
            assert weekday[1] == day.strftime("%A")


def test_times() -> None:
    for sample in all_samples("time_24h"):
        time = datetime.strptime(sample.answer, "%H:%M")
        if clock := re.search(r"(\d+)(?::(\d\d))? ([ap])\.?m", sample.prompt, re.IGNORECASE):
            hour = int(clock[1]) % 12 + (12 if clock[3].lower() == "p" else 0)
            assert (time.hour, time.minute) == (hour, int(clock[2] or 0))
        else:
            spoken = re.search(r"(past \w+|o'clock) (?:in the|at) (\w+)", sample.prompt)
            assert spoken and time.hour in PARTS_OF_DAY[spoken[2]]
            assert (time.minute == 0) == (spoken[1] == "o'clock") and time.minute <= 30


PARTS_OF_DAY = {
    "morning": range(12),
    "afternoon": range(12, 18),
    "evening": range(18, 21),
    "night": range(21, 24),
}


def test_numbers() -> None:
    for sample in all_samples("number_words"):
        number = int(sample.answer)
        spoken = {in_words(number, " and "), in_words(number, " ")}
        assert any(words in sample.prompt.lower() for words in spoken)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (15, "fifteen"),
        (80, "eighty"),
        (42, "forty-two"),
        (100, "one hundred"),
        (305, "three hundred and five"),
        (1000, "one thousand"),
        (4012, "four thousand and twelve"),
        (99_999, "ninety-nine thousand nine hundred and ninety-nine"),
    ],
)
def test_number_names(number: int, words: str) -> None:
    assert in_words(number) == words


def test_tenses() -> None:
    for tense in ("past_tense", "future_tense"):
        for sample in all_samples(tense):
            assert sample.answer.endswith(".")
            assert sample.answer not in sample.prompt or " read " in sample.answer, (
                "only this past looks like the present"
            )
    assert all(" will " in sample.answer for sample in all_samples("future_tense"))
    assert not any(" will " in sample.answer for sample in all_samples("past_tense"))


@pytest.mark.parametrize(
    ("present", "past"),
    [
        (r"\bgoes\b", "went"),
        (r"\bstudies\b", "studied"),
        (r"\bplays\b", "played"),
        (r"\bcatches\b", "caught"),
        (r"\bwatches\b", "watched"),
        (r"\bcarries\b", "carried"),
    ],
)
def test_third_person_and_past(present: str, past: str) -> None:
    found = [s for s in all_samples("past_tense") if re.search(present, s.prompt)]
    assert found and all(f" {past} " in sample.answer for sample in found)


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("log_json", ["time", "level", "service", "message"]),
        ("csv_json", ["name", "email", "city", "age"]),
        ("ingredient_json", ["quantity", "unit", "item"]),
    ],
)
def test_json_answers(task: str, keys: list[str]) -> None:
    for sample in all_samples(task):
        record = json.loads(sample.answer)
        assert list(record) == keys
        for key, value in record.items():
            if isinstance(value, str) and key not in {"unit", "level"}:
                assert value in sample.prompt
    if task == "ingredient_json":
        records = [json.loads(sample.answer) for sample in all_samples(task)]
        assert {record["unit"] for record in records} >= {None, "cup", "g", "tablespoon"}


def test_sql_runs_on_the_schema() -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO customers VALUES (1, 'Ruth Cohen', 'Rome')")
        connection.execute("INSERT INTO products VALUES (1, 'chess', 'games', 20.0, 4), (2, 'go', 'games', 30.0, 9)")
        connection.execute("INSERT INTO orders VALUES (1, 1, 2, 1, '2024-05-06')")
        for sample in all_samples("sql_shop"):
            connection.execute(sample.answer)
        dearest = "SELECT name FROM products WHERE category = 'games' ORDER BY price DESC LIMIT 1;"
        assert connection.execute(dearest).fetchall() == [("go",)]
    connection.close()


def test_schema_is_not_in_the_prompt() -> None:
    assert not any(re.search(r"CREATE|customer_id|\bid\b", sample.prompt) for sample in all_samples("sql_shop"))


def test_ticket_answers() -> None:
    answers = {sample.answer for sample in all_samples("ticket_team")}
    assert answers == {f"team: {team}" for team in TEAMS}


def test_library_json_is_in_step() -> None:
    assert json.loads((LIBRARY / "library.json").read_text(encoding="utf-8")) == library_manifests()


def test_library_examples_are_training_prompts(name: str) -> None:
    examples = TASKS[name].examples()
    assert len(set(examples)) == 32
    assert set(examples) <= {sample.prompt for sample in TASKS[name].samples("train", SHAPES[name].num_samples)}


def test_held_out_is_in_step() -> None:
    rows = [json.loads(line) for line in (LIBRARY / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == held_out_rows()


def test_out_of_scope_prompts() -> None:
    lines = (LIBRARY / "out_of_scope.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    assert len(set(prompts)) == 200
    in_scope = {sample.prompt for name in TASKS for sample in all_samples(name)}
    assert not set(prompts) & in_scope


def test_adapters_are_plain_lora_as_planned(name: str) -> None:
    folder = LIBRARY / "adapters" / name
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    shape = SHAPES[name]
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (shape.rank, shape.alpha, shape.rslora)
    assert config["target_modules"] == sorted(shape.modules)
    assert not config["use_dora"] and config["bias"] == "none" and config["modules_to_save"] is None
    assert not re.search(r"/(home|root|tmp|work|Users)\b", json.dumps(config))


def test_adapters_are_small() -> None:
    assert sum(file.stat().st_size for file in (LIBRARY / "adapters").rglob("*")) <= MAX_ADAPTERS_BYTES


def test_scores_belong_to_the_adapters_and_reach_the_bar(name: str) -> None:
    from examples.demo_library.evaluate import adapter_hash

    score = json.loads((EXAMPLE / "scores.json").read_text(encoding="utf-8"))[name]
    assert score["adapter_sha256"] == adapter_hash(LIBRARY / "adapters" / name), "run evaluate.py again"
    assert score["expert_correct"] >= 0.9 * score["num_prompts"]
    assert score["base_correct"] <= 0.3 * score["num_prompts"]


def test_readme_table_is_in_step() -> None:
    from examples.demo_library.evaluate import TABLE_BEGIN, TABLE_END, table

    scores = json.loads((EXAMPLE / "scores.json").read_text(encoding="utf-8"))
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert readme.partition(TABLE_BEGIN)[2].partition(TABLE_END)[0].strip() == table(LIBRARY, scores)
