"""Requests: typed, expanded, refused with a reason. Run: pytest tests/unit/test_spec.py"""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from dlmbench.errors import RequestError
from dlmbench.registry import DECODERS
from dlmbench.request import RunSpec, SweepSpec, canonical, digest, identity, options, values
from dlmbench.request.key import same_request
from dlmbench.request.resolved import with_baselines


@dataclass(frozen=True)
class Options:
    tau: float = field(default=0.9, metadata={"help": "threshold", "threshold": True})
    mode: str = field(default="plain", metadata={"help": "how", "choices": ("plain", "remask")})
    steps: int = 4
    careful: bool = False
    span: int | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.3:0.5:0.05", [0.3, 0.35, 0.4, 0.45, 0.5]),
        ("1:4", [1, 2, 3, 4]),
        ("0.9:1:0.1", [0.9, 1.0]),
        ("a,b", ["a", "b"]),
        ("1:3,8", [1, 2, 3, "8"]),
        ("owner/model", ["owner/model"]),
        ([0.1, "0.2:0.3:0.1"], [0.1, 0.2, 0.3]),
        (7, [7]),
    ],
)
def test_values_of_a_sweep(text, expected):
    assert values.parse_values(text) == expected


@pytest.mark.parametrize("text", ["0.9:0.3:0.1", "0.3:0.9:0", "a,,b", "0:1:0.0001"])
def test_impossible_ranges_are_refused(text):
    with pytest.raises(RequestError):
        values.parse_values(text)


def test_options_are_typed():
    bound = options.bind(Options, {"tau": "0.5", "mode": "remask", "steps": "2", "careful": "yes", "span": "3"}, "mine")
    assert bound == Options(0.5, "remask", 2, True, 3)
    assert options.bind(Options, {"span": "none"}, "mine").span is None


@pytest.mark.parametrize(
    "values, words",
    [
        ({"taus": 1}, "did you mean tau"),
        ({"mode": "odd"}, "plain, remask"),
        ({"steps": "2.5"}, "whole number"),
        ({"tau": "high"}, "a number"),
        ({"careful": "perhaps"}, "true or false"),
        ({"tau": "nan"}, "no finite number"),
        ({"tau": float("-inf")}, "no finite number"),
        ({"steps": "inf"}, "whole number"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_explained(values, words):
    with pytest.raises(RequestError, match=words):
        options.bind(Options, values, "mine")


@pytest.mark.parametrize("item", ["k=2", "static.k", "static.=2", ".k=2", "static.k="])
def test_assignments_name_method_option_and_value(item):
    with pytest.raises(RequestError, match="method.option=value"):
        values.parse_assignments([item])


def test_labels_show_the_knob_and_what_differs():
    assert options.label("mine", Options()) == "mine 0.9"
    assert options.label("mine", Options(tau=0.6, mode="remask")) == "mine 0.6 mode=remask"
    assert options.label("static", DECODERS.get("static").Config()) == "static k=1"
    assert options.label("ar", DECODERS.get("ar").Config()) == "ar"
    mrp = DECODERS.get("mrp").Config
    assert options.label("mrp", mrp(tau=0.6)) == "mrp 0.6"
    assert options.label("mrp", mrp(tau=0.6, mode="direct", K=2)) == "mrp mode=direct K=2", "its tau is of no use"
    assert options.label("mrp", mrp(tau=0.6, mode="direct", commit="dynamic")) == "mrp 0.6 mode=direct commit=dynamic"


# --- one run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("store", "fusd"),
        ("cache", "all"),
        ("dtype", "float31"),
        ("limit", 0),
        ("batch_size", "many"),
        ("device", "tpu"),
        ("seed", -1),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("split", "train"),
        ("threshold", "nan"),
        ("threshold", float("inf")),
        ("temperature", "inf"),
        ("method", ""),
    ],
)
def test_wrong_values_are_refused_at_once(name, value):
    given = {"method": "static", "task": "nano-gsm", name: value}
    with pytest.raises(RequestError, match=name.replace("_", "[_ -]")):
        RunSpec(**given)


def test_values_from_text_are_converted():
    spec = RunSpec("threshold", "nano-gsm", threshold="0.6", limit="50", batch_size="8", against="static")
    assert (spec.threshold, spec.limit, spec.batch_size, spec.against) == (0.6, 50, 8, ("static",))
    assert RunSpec("threshold", "nano-gsm", against="none").against == ()


def test_threshold_sets_the_knob():
    cell = RunSpec("threshold", "nano-gsm", threshold=0.6).resolve()
    assert cell.config.tau == 0.6 and cell.label == "threshold 0.6" and cell.block_length == 8


@pytest.mark.parametrize("threshold, said", [(80, "no position passes"), (-0.2, "every position passes"), (1, "")])
def test_a_threshold_that_is_no_confidence_is_told(threshold, said):
    notes = RunSpec("threshold", "nano-gsm", threshold=threshold).resolve().notes
    assert any("is no confidence" in note and said in note for note in notes) == bool(said)
    assert not RunSpec("entropy", "nano-gsm", threshold=80).resolve().notes, "entropies are no confidences"


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="--device cpu"):
        RunSpec("static", "nano-gsm", device="cuda").resolve()
    assert RunSpec("static", "nano-gsm").resolve().device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match="cuda:9; here are cuda:0, cuda:1"):
        RunSpec("static", "nano-gsm", device="cuda:9").resolve()
    assert RunSpec("static", "nano-gsm", device="cuda:1").resolve().device == "cuda:1"


def test_a_local_checkpoint_is_told_which_block_length_is_assumed(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llada", "d_model": 8}')
    cell = RunSpec("static", "gsm8k", model=str(tmp_path)).resolve()
    assert cell.block_length == 4 and any("block length 4 assumed" in note for note in cell.notes)
    assert not RunSpec("static", "gsm8k", model=str(tmp_path), block_length=8).resolve().notes
    assert not RunSpec("static", "nano-gsm").resolve().notes


def test_weights_that_attend_by_blocks_of_unknown_length_are_refused_until_somebody_says_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sdar", "mask_token_id": 2}')
    with pytest.raises(RequestError, match="give --block-length"):
        RunSpec("static", "gsm8k", model=str(tmp_path)).resolve()
    assert RunSpec("static", "gsm8k", model=str(tmp_path), block_length=8).resolve().block_length == 8
    (tmp_path / "config.json").write_text('{"model_type": "sdar", "mask_token_id": 2, "block_size": 16}')
    assert RunSpec("static", "gsm8k", model=str(tmp_path)).resolve().block_length == 16


def test_a_shipped_model_without_weights_is_never_looked_for_elsewhere(tmp_path, monkeypatch):
    from dlmbench.models.presets import PRESETS

    monkeypatch.setattr("dlmbench.models.presets.ASSETS", tmp_path)
    assert PRESETS["nano2"].location == str(tmp_path / "nano" / "nano2"), "a folder, no name on the hub"
    with pytest.raises(RequestError, match="nano2 is not in this copy; make train-nano"):
        RunSpec("static", "nano-gsm").resolve()


def test_a_method_without_a_knob_says_so_and_runs_at_its_default():
    cell = RunSpec("static", "nano-gsm", threshold=0.6).resolve()
    assert cell.label == "static k=1"
    assert "no threshold" in cell.notes[0]


def test_a_knob_that_a_mode_does_not_use_is_one_cell_without_a_value():
    flags = {"method": "mrp", "task": "nano-gsm", "threshold": "0.5,0.9", "set": ["mrp.mode=direct"]}
    cells, notes = SweepSpec.from_flags({**flags, "against": "none"}).resolve()
    assert [cell.label for cell in cells] == ["mrp mode=direct"]
    assert notes == ["mrp mode=direct makes no use of tau; --threshold changes nothing."]


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(method="ar"), "use --model nano2-ar"),
        (dict(method="static", model="nano2-ar"), "--method ar"),
        (dict(method="static", cache="prefix"), "leave --cache out"),
        (dict(method="threshhold"), "did you mean threshold"),
        (dict(method="static", model="nan"), "did you mean nano"),
        (dict(method="threshold", threshold=0.5, settings={"threshold": {"tau": 0.6}}), "the same option"),
    ],
)
def test_impossible_requests_name_the_remedy(given, words):
    with pytest.raises(RequestError, match=words):
        RunSpec(task="nano-gsm", **given).resolve()


def test_settings_of_a_stranger_are_refused():
    with pytest.raises(RequestError, match="mrp"):
        RunSpec("static", "nano-gsm", settings={"mrp": {"K": 1}})


def test_a_task_the_model_was_not_trained_for_is_noted():
    assert "near zero" in RunSpec("static", "gsm8k").resolve().notes[0]
    assert not RunSpec("static", "nano-gsm/easy").resolve().notes


def test_baselines_share_everything_but_the_method():
    spec = RunSpec("entropy", "nano-gsm", threshold=0.3, limit=9, settings={"static": {"k": 2}})
    static, threshold, ours = with_baselines([spec])
    assert ours == spec
    assert (static.method, static.threshold, static.limit) == ("static", None, 9)
    assert static.resolve().config.k == 2
    assert (threshold.method, threshold.threshold) == ("threshold", None), "nats are no confidence"
    assert threshold.resolve().label == "threshold 0.9"
    confident = RunSpec("rcd", "nano-gsm", threshold=0.3)
    assert [other.threshold for other in with_baselines([confident])] == [None, 0.3, 0.3]
    alone = RunSpec("ar", "nano-gsm", model="nano2-ar")
    assert with_baselines([alone]) == [alone]


def test_portable_names_no_place(tmp_path):
    model = tmp_path / "my-model"
    model.mkdir()
    spec = RunSpec("static", "gsm8k", model=str(model), data_dir=str(tmp_path), out=str(tmp_path))
    text = json.dumps(spec.portable())
    assert str(tmp_path) not in text and "my-model" in text


# --- keys -----------------------------------------------------------------------------------------------------------


def key(weights="w", prompts="p", limits=None, content=None, **given):
    cell = RunSpec(**{"method": "threshold", "task": "nano-gsm", "device": "cpu", **given}).resolve()
    content = {"task_version": 1, "content_hash": "c", "tokenizer": "t", **(content or {})}
    return digest(identity(cell, {"target": weights}, prompts, limits or {"gen_length": 64}, content))


def test_equal_runs_have_equal_keys():
    assert key() == key()
    assert key(threshold=0.9) == key(), "a default that is written out is the same run"
    assert key(out="elsewhere", against="none", data_dir="x") == key(), "where things are does not matter"


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"prompts": "other"},
        {"limits": {"gen_length": 32}},
        {"content": {"task_version": 2}},
        {"content": {"content_hash": "other"}},
        {"content": {"tokenizer": "other"}},
        {"threshold": 0.8},
        {"seed": 1},
        {"settings": {"threshold": {"inclusive": True}}},
        {"method": "entropy"},
        {"store": "separate"},
        {"batch_size": 1},
        {"dtype": "bfloat16"},
        {"temperature": 0.5},
        {"block_length": 4},
        {"split": "dev"},
    ],
)
def test_whatever_changes_the_run_changes_the_key(change):
    assert key(**change) != key()


def test_canonical_json_does_not_depend_on_order():
    assert canonical({"b": 1, "a": [1.5]}) == canonical({"a": [1.5], "b": 1}) == '{"a":[1.5],"b":1}'


def test_a_decoder_from_a_file_has_the_hash_of_the_file_in_its_version(tmp_path):
    source = (
        "from dlmbench.decoders.static import Static\nfrom dlmbench.registry import DECODERS\n\n\n"
        "class Mine(Static):\n    name = 'mine-for-versions'\n\n\nDECODERS.register('mine-for-versions', Mine)\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(source)
    before = RunSpec("mine-for-versions", "nano-gsm", plugin=str(file)).resolve().version
    file.write_text(source + "# changed\n")
    after = RunSpec("mine-for-versions", "nano-gsm", plugin=str(file)).resolve().version
    assert before.startswith("1-") and before != after
    assert RunSpec("static", "nano-gsm", plugin=str(file)).resolve().version == "1"


# --- sweeps ---------------------------------------------------------------------------------------------------------


def labels(sweep):
    return [cell.label for cell in sweep.resolve()[0]]


def test_lists_and_ranges_make_cells():
    sweep = SweepSpec.from_flags(
        {
            "method": "threshold,static",
            "task": "nano-gsm",
            "threshold": "0.3:0.5:0.1",
            "set": ["static.k=1,2"],
            "batch_size": "1,8",
        }
    )
    assert len(sweep.runs) == 2 * 3 + 2 * 3 * 2
    cells, notes = sweep.resolve()
    assert len(cells) == 2 * 3 + 2 * 2, "static has no knob and runs once a setting"
    assert any("static has no threshold" in note for note in notes)


def test_baselines_join_a_sweep_at_the_same_confidences():
    sweep = SweepSpec.from_flags({"method": "entropy", "task": "nano-gsm", "threshold": "0.2,0.4"})
    assert labels(sweep) == ["static k=1", "threshold 0.9", "entropy 0.2", "entropy 0.4"]
    confident = SweepSpec.from_flags({"method": "rcd", "task": "nano-gsm", "threshold": "0.2,0.4"})
    assert labels(confident) == ["static k=1", "threshold 0.2", "threshold 0.4", "rcd 0.2", "rcd 0.4"]
    careful = SweepSpec.from_flags({"method": "entropy,static", "task": "nano-gsm"})
    assert labels(careful) == ["threshold 0.9", "entropy 0.35", "static k=1"]
    alone = SweepSpec.from_flags({"method": "entropy", "task": "nano-gsm", "against": "none"})
    assert labels(alone) == ["entropy 0.35"]


RECIPE = """
description: a test
limit: 10
tasks: [{task: nano-gsm, limit: 5}, nano-code]
methods:
  - {method: static, set: {k: "1,2"}}
  - threshold
  - {method: ar, model: nano2-ar}
"""


def test_a_recipe_and_its_overrides(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE)
    sweep = SweepSpec.from_recipe(file)
    assert [(c.task, c.method, c.model, c.limit) for c in sweep.runs][:4] == [
        ("nano-gsm", "static", "nano2", 5),
        ("nano-gsm", "static", "nano2", 5),
        ("nano-gsm", "threshold", "nano2", 5),
        ("nano-gsm", "ar", "nano2-ar", 5),
    ]
    assert len(sweep.runs) == 8 and sweep.name == "small" and sweep.description == "a test"
    only = SweepSpec.from_recipe(file, {"task": "nano-code", "method": "ar", "limit": "3", "out": "x"})
    assert [(c.task, c.method, c.limit, c.out) for c in only.runs] == [("nano-code", "ar", 3, "x")]
    assert only.out == "x"


@pytest.mark.parametrize("name, cells, items", [("reproduce", 75, {128, 64, 48}), ("reproduce-full", 65, {500})])
def test_shipped_recipes_bind(name, cells, items):
    from dlmbench.cli.sweep import find_recipe

    sweep = SweepSpec.from_recipe(find_recipe(name))
    found, notes = sweep.resolve()
    assert len(found) == cells and notes == [] and {cell.spec.limit for cell in found} == items
    assert len([cell for cell in found if cell.spec.method == "threshold" and cell.spec.task == "nano-gsm"]) >= 8
    assert sweep.out == f"results/{name}"


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"task": "nano-gsm"}, "--method"),
        ({"method": "static"}, "--task"),
        ({"method": "static", "task": "nano-gsm", "set": ["mrp.K=1"]}, "mrp"),
        ({"method": "static", "task": "nano-gsm", "tune_on": "test"}, "dev"),
        ({"method": "static", "task": "nano-gsm", "tune_on": "dev", "split": "dev"}, "reported on dev"),
        ({"method": "static", "task": "nano-gsm", "batch": "1"}, "batch_size"),
    ],
)
def test_wrong_sweeps_are_refused(flags, words):
    with pytest.raises(RequestError, match=words):
        SweepSpec.from_flags(flags)


@pytest.mark.parametrize(
    "text, words",
    [
        ("- 1", "mapping"),
        ("a: [", "YAML"),
        ("tasks: [nano-gsm]", "methods"),
        ("tasks: [nano-gsm]\nmethods: [static]\nlimits: 3", "did you mean limit"),
        ("tasks: [nano-gsm]\nmethods: [{set: {k: 1}}]", "no method"),
        ("tasks: [nano-gsm]\nmethods: [static]\nsettings: {static: {k: 2}}", "given as set"),
        ("tasks: [nano-gsm]\nmethods: [static]\nset: {treshold.inclusive: true}", "treshold.*entry of methods"),
        ("tasks: [nano-gsm]\nmethods: [{method: static, set: {statik.k: 2}}]", "statik"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, text, words):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=words):
        SweepSpec.from_recipe(file)


def test_ranges_of_whole_numbers_are_ranges_in_a_recipe(tmp_path):
    """YAML takes 1:3 for a number to the base of 60."""
    file = tmp_path / "ranges.yaml"
    numbers = "seed: 1:3\nlimit: 10:20:10\nbatch_size: 2:4:2"
    file.write_text(f"tasks: [nano-gsm]\nmethods: [{{method: static, set: {{k: 1:4}}}}]\n{numbers}")
    runs = SweepSpec.from_recipe(file).runs
    assert {run.seed for run in runs} == {1, 2, 3} and {run.limit for run in runs} == {10, 20}
    assert {run.batch_size for run in runs} == {2, 4} and {run.settings["static"]["k"] for run in runs} == {1, 2, 3, 4}
    file.write_text("tasks: [nano-gsm]\nmethods: [threshold]\nthreshold: 0:1:0.5\nseed: 0x10")
    runs = SweepSpec.from_recipe(file).runs
    assert [run.threshold for run in runs] == [0, 0.5, 1] and runs[0].seed == 16


@pytest.mark.parametrize(
    "axis",
    [{"bos": "true,false"}, {"mask_id": "3,4"}, {"grid": "prompt,origin"}, {"model": "nano2-llada", "shift": "0,1"}],
)
def test_what_is_said_of_a_checkpoint_makes_runs_of_its_own(axis):
    sweep = SweepSpec.from_flags({"method": "static", "task": "nano-gsm", "against": "none", **axis})
    assert len(sweep.resolve()[0]) == 2


def test_static_of_several_tokens_a_step_is_no_reference():
    def labels(**asked):
        return [run.label for run in SweepSpec.from_flags({"task": "nano-gsm", **asked}).resolve()[0]]

    assert labels(method="static", set=["static.k=2,4"], against="static") == ["static k=1", "static k=2", "static k=4"]
    assert labels(method="static", set=["static.k=2,4"], against="none") == ["static k=2", "static k=4"]
    assert labels(method="static", set=["static.k=1,4"], against="static") == ["static k=1", "static k=4"]


def test_specs_import_nothing_heavy():
    code = (
        "import sys, dlmbench.request, dlmbench.runs, dlmbench.registry\n"
        "dlmbench.request.RunSpec('static', 'nano-gsm')\n"
        "assert not {'torch', 'transformers', 'pandas', 'lm_eval', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- full attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(method="prophet"), "answer window"),
        (dict(method="prophet", cache="dual", settings={"prophet": {"answer_start": 4}}), "cache policy dual"),
        (dict(method="wino", cache="prefix"), "cache policy prefix"),
        (dict(method="wino", settings={"sampling": {"guidance": 1}}), "guidance"),
        (dict(settings={"cache": {"refresh_every": 2}}), "refresh_every belongs to --cache prefix or dual"),
        (dict(cache="prefix", settings={"cache": {"reload_every": 4}}), "reload_every belongs to --cache dkv"),
        (dict(method="saber", cache="dkv"), "cache policy dkv"),
        (dict(settings={"cache": {"freez": "stale"}}), "did you mean freeze"),
        (dict(settings={"sampling": {"eos": "gone"}}), "free, never, last"),
        (dict(task="nano-gsm", gen_length=40, settings={"sampling": {"constraint": True}}), "above 51"),
        (dict(model="nano2", settings={"sampling": {"guidance": 1}}), "bidirectional"),
        (dict(method="static", settings={"static": {"order": "origin"}}), "schedule=dream"),
    ],
)
def test_what_full_attention_cannot_do_is_refused_with_a_remedy(given, words):
    spec = RunSpec(**{"method": "static", "task": "gsm8k", "model": "llada-8b-instruct", **given})
    with pytest.raises(RequestError, match=words):
        spec.resolve()


def test_presets_carry_blocks_eos_switches_and_orders():
    instruct = RunSpec(method="static", task="humaneval", model="llada-8b-instruct").resolve()
    assert (instruct.block_length, instruct.gen_length, instruct.eos) == (512, 512, "never")
    newer = RunSpec(method="static", task="math500", model="llada-1.5").resolve()
    assert (newer.block_length, newer.gen_length, newer.eos) == (128, 1024, "last")
    dream = RunSpec(method="static", task="gsm8k", model="dream-7b-base").resolve()
    assert (dream.block_length, dream.parameters["order"], dream.parameters["schedule"]) == (256, "entropy", "dream")
    assert RunSpec(method="static", task="gsm8k", model="dream-7b-base", block_length=32).resolve().block_length == 32


def test_shared_options_reach_the_baselines_and_the_window_comes_from_the_task():
    shared = {"sampling": {"constraint": True}, "cache": {"freeze": "refresh"}}
    spec = RunSpec(
        method="prophet", task="nano-gsm", model="llada-8b-base", cache="freecache", settings=shared, gen_length=64
    )
    checked = spec.resolve()
    assert checked.parameters["answer_start"] == checked.fixed["window"] == 51
    for baseline in with_baselines([spec])[:-1]:
        assert baseline.resolve().fixed == checked.fixed and baseline.resolve().shared == checked.shared
    sweep = SweepSpec.from_flags(
        {"task": "gsm8k", "method": "static", "model": "llada-8b-base", "cache": "prefix", "against": "threshold",
         "set": ["cache.refresh_every=0:2"]}
    )  # fmt: skip
    found = [(c.spec.method, c.shared.cache.refresh_every) for c in sweep.resolve()[0]]
    assert found == [(method, n) for n in (0, 1, 2) for method in ("threshold", "static")]


def test_a_label_names_a_helper_that_the_model_does_not_bring():
    labels = [RunSpec("simsd", "nano-gsm", draft=draft).resolve().label for draft in (None, "nano2-draft", "nano2")]
    assert labels == ["simsd verify=packed", "simsd verify=packed", "simsd verify=packed draft=nano2"]


def test_baselines_of_a_method_with_a_helper_are_the_same_cells_as_those_without():
    beside = {same_request(cell) for cell in SweepSpec.from_flags({"method": "simsd", "task": "nano-gsm"}).resolve()[0]}
    named = SweepSpec.from_flags({"method": "simsd", "task": "nano-gsm", "draft": "nano2-draft"}).resolve()[0]
    assert beside == {same_request(cell) for cell in named}
    assert same_request(RunSpec("static", "nano-gsm", guide="nano2-ar").resolve()) in beside
