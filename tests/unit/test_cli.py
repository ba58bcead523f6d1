"""The command line without a model: help, errors, lists, figures. Run: pytest tests/unit/test_cli.py"""

import json
import os
import signal
import subprocess
import sys

import pytest
from synthetic import make_family, make_run
from typer.testing import CliRunner

from dlmbench.cli.app import VERBS, app, main
from dlmbench.models.presets import PRESETS
from dlmbench.registry import DECODERS


@pytest.fixture
def call(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom dlmbench.cli.app import main\ntry:\n    main(['--help'])\nexcept SystemExit as e:\n"
        "    assert not e.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'lm_eval', 'matplotlib', 'numpy', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0 and "Usage" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "--method", "threshhold", "--task", "nano-gsm"], "did you mean threshold"),
        (["bench", "--device", "tpu"], "it takes auto, cpu, cuda or cuda:N"),
        (["bench", "--device", "cuda:99"], "device is cuda:99"),
        (["bench", "--dtype", "float33"], "did you mean float32"),
        (["bench", "--shape", "llada-20m", "--contexts", "128,512"], "take --lengths"),
        (["verify", "tests", "--device", "cuda:99"], "device is cuda:99"),
        (["run", "--method", "ar", "--task", "nano-gsm"], "use --model nano2-ar"),
        (["run", "--method", "static", "--task", "nano-gsm", "--cache", "prefix"], "leave --cache out"),
        (["run", "--method", "static", "--task", "nano-gsm", "--set", "static.kk=1"], "no option 'kk'"),
        (["run", "--method", "static", "--task", "nano-gsm", "--batch-size", "x"], "batch_size"),
        (["run", "--method", "static", "--task", "nano-gsm", "--plugin", "absent.py"], "does not exist"),
        (["run", "--method", "static"], "--task"),
        (["sweep", "absent.yaml"], "does not exist"),
        (["sweep", "--method", "static", "--task", "nano-gsm", "--executor", "cloud"], "local"),
        (["plot", "absent"], "does not exist"),
        (["score", "absent"], "No run folder"),
        (["list", "things"], "methods, models, tasks, protocols, recipes"),
        (["show", "threshol"], "did you mean threshold"),
        (["fly"], "fly"),
    ],
)
def test_wrong_requests_exit_with_2_and_a_sentence(call, arguments, words):
    code, out, err = call(*arguments)
    assert code == 2 and out == ""
    assert words in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_debug_shows_the_traceback_anywhere(call):
    for arguments in (["--debug", "list", "things"], ["list", "things", "--debug"]):
        code, _, err = call(*arguments)
        assert code == 2 and "Traceback" in err and err.rstrip().endswith("protocols, recipes.")


def test_a_failure_of_ours_exits_with_1_and_one_line(call, monkeypatch):
    monkeypatch.setattr("dlmbench.cli.score.find_runs", lambda *_: 1 / 0)
    code, _, err = call("score", ".")
    assert code == 1 and err.startswith("dlmbench: ZeroDivisionError") and len(err.splitlines()) == 1


def test_list_and_show_know_everything(call):
    for kind, names in (
        ("methods", DECODERS.names()),
        ("models", PRESETS),
        ("tasks", ["nano-gsm", "humaneval"]),
        ("recipes", ["reproduce"]),
    ):
        code, out, _ = call("list", kind, "--json")
        listed = [next(iter(row.values())) for row in json.loads(out)[kind]]
        assert code == 0 and set(names) <= set(listed)
        for name in names:
            code, out, _ = call("show", name, "--json")
            assert code == 0 and json.loads(out)
    assert "budget" in call("show", "entropy")[1] and "threshold 0.9" in call("show", "reproduce")[1]


@pytest.fixture
def examined(call, monkeypatch):
    """Doctor on a machine where everything is there: (exit code, checks by name)."""
    walls = {"sandbox": (True, "walls"), "memory": (False, "-")}
    monkeypatch.setattr("dlmbench.cli.doctor.capabilities", lambda: walls)
    monkeypatch.setattr("dlmbench.cli.doctor.PRESETS", {"nano2": PRESETS["nano2"]})

    def run():
        code, out, _ = call("doctor", "--offline", "--json")
        record = json.loads(out)
        assert record["ok"] == (code == 0)
        return code, {check["what"]: check for check in record["checks"]}

    return run


def test_doctor_reports_without_a_network(examined):
    code, checks = examined()
    assert code == 0 and checks["torch"]["state"] == "ok" and "hub" not in checks
    assert checks["model nano2"]["detail"].endswith(" MB") and checks["sandbox memory"]["state"] == "limited"


def test_doctor_fails_without_a_package_a_model_or_a_sandbox(examined, monkeypatch, tmp_path):
    from dlmbench.runs import environment

    real = environment.version

    def version(package):
        if package == "pandas":
            raise environment.PackageNotFoundError(package)
        return real(package)

    for place, value, what, remedy in (
        ("dlmbench.runs.environment.version", version, "pandas", "pip install pandas"),
        ("dlmbench.models.presets.ASSETS", tmp_path, "model nano2", "make train-nano"),
        ("dlmbench.cli.doctor.capabilities", lambda: {"sandbox": (False, "no namespaces")}, "sandbox", "no namespaces"),
    ):
        with monkeypatch.context() as change:
            change.setattr(place, value)
            code, checks = examined()
        assert code == 1 and [name for name, check in checks.items() if check["state"] == "missing"] == [what]
        assert remedy in checks[what]["detail"]


def run_python(code, **streams):
    return subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, **streams)


def test_an_interrupt_says_that_nothing_is_lost():
    process = run_python(
        "import signal, time, dlmbench.cli.score as verb\nfrom dlmbench.cli.app import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits it ignored
        "verb.find_runs = lambda *_: (print('ready', flush=True), time.sleep(60))\nmain(['score', '.'])",
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "dlmbench: Stopped. Nothing that was finished is lost; the same command goes on from here.\n"


@pytest.mark.parametrize("arguments", [["list", "models"], ["list", "models", "--json"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    process = run_python(f"from dlmbench.cli.app import main\nmain({arguments!r})", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_leaving_without_a_teardown_keeps_output_exit_functions_and_the_exit_code():
    code = (
        "import atexit, sys\nfrom dlmbench.cli import app\natexit.register(print, 'last words')\n"
        "sys.argv = ['dlmbench', '--version']\napp.app = lambda *_, **__: print('first') or 3\napp.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")) == (3, ["first", "last words", ""])


@pytest.mark.parametrize("kind", ["models", "recipes"])
def test_lists_keep_names_in_one_piece_at_80_columns(call, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "80")
    rows = json.loads(call("list", kind, "--json")[1])[kind]
    lines = call("list", kind)[1].splitlines()
    assert max(map(len, lines)) <= 80
    for row in rows:
        assert any(line.split()[:1] == [row["file" if kind == "recipes" else "model"]] for line in lines)
    assert not [row for row in rows if not row["what it does" if kind == "recipes" else "what it is"]]


def test_a_shipped_model_that_is_not_here_is_listed_as_absent(call, monkeypatch, tmp_path):
    monkeypatch.setattr("dlmbench.models.presets.ASSETS", tmp_path)
    where = {row["model"]: row["where"] for row in json.loads(call("list", "models", "--json")[1])["models"]}
    assert where["nano2"] == "absent" and where["sdar-8b"] == "hub"
    assert "make train-nano" in call("show", "nano2")[1]
    code, _, err = call("run", "--method", "static", "--task", "nano-gsm")
    assert code == 2 and "make train-nano" in err


def test_plot_writes_beside_the_runs_or_where_told(call, tmp_path):
    make_family(tmp_path / "runs", 2, 2)
    code, out, _ = call("plot", tmp_path / "runs", "--x", "nfe")
    assert code == 0 and [line.rpartition(".")[2] for line in out.split()] == ["png", "svg", "pdf"]
    code, out, _ = call("plot", tmp_path / "runs", "--out", tmp_path / "elsewhere", "--name", "f", "--json")
    assert code == 0 and json.loads(out)["rows"] == 4
    assert (tmp_path / "elsewhere" / "f.svg").is_file()


@pytest.mark.parametrize("flag", [("--x", "nfe"), ("--y", "tps"), ("--model", "nano2"), ("--published",)])
def test_plot_refuses_axes_where_none_are_drawn(call, tmp_path, flag):
    make_run(tmp_path)
    code, _, err = call("plot", tmp_path, "--kind", "tasks", *flag)
    assert code == 2 and f"{flag[0]} is for --kind pareto" in err


@pytest.mark.parametrize("flag", [("--split", "all"), ("--max-drop", "5"), ("--latex",)])
def test_a_leaderboard_refuses_what_belongs_to_one_report(call, tmp_path, flag):
    make_run(tmp_path)
    code, _, err = call("report", tmp_path, "--leaderboard", *flag)
    assert code == 2 and "leave them or --leaderboard out" in err


def test_a_sweep_says_which_rows_its_tables_lose(call, tmp_path):
    asked = ["--task", "nano-gsm", "--limit", "2", "--against", "none", "--out", tmp_path]
    assert "another sweep" not in call("sweep", "--method", "threshold", "--threshold", "0.5", *asked)[1]
    assert "1 row of another sweep" in call("sweep", "--method", "threshold", "--threshold", "0.9", *asked)[1]


def test_a_narrow_list_of_runs_keeps_what_tells_them_apart(call, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    for seed in (0, 1):
        make_run(tmp_path, threshold=0.7, seed=seed)
    lines = call("runs", tmp_path)[1].splitlines()
    assert "when" not in lines[0] and "model" not in lines[0]
    assert sum("threshold 0.7" in line for line in lines) == 2 and sum("seed 1" in line for line in lines) == 1


def test_plot_says_when_there_is_nothing(call, tmp_path):
    make_run(tmp_path, finished=False)
    code, _, err = call("plot", tmp_path)
    assert code == 2 and "No finished run" in err


def test_bench_compares_cached_forwards_of_full_attention():
    short = ["--lengths", "16,64", "--repeats", "1", "--json"]
    record = json.loads(CliRunner().invoke(app, ["bench", "--shape", "llada-20m", *short]).stdout)
    assert [row["length"] for row in record["cached"]] == [16, 64]
    assert all(row["dual_ms"] > 0 for row in record["cached"]) and record["block_length"] == 32
    assert "whole row over dual, length 64" in record["ratios"]
