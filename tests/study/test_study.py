"""Study files: what is wrong is named by its key, all at once, and nothing starts."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_attn.errors import ConfigError, UsageError
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.study.loading import load_study
from nas_attn.study.shipped import shipped_folder, shipped_names
from nas_attn.study.spaces import load_space_config, space_folder, space_over
from nas_attn.study.study import Study
from nas_attn.yaml_file import read_yaml
from tests.helpers.studies import write

BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"trails": 3}, "trails", "unknown key"),
    ({"search/trails": 3}, "search.trails", 'unknown key; did you mean "trials"?'),
    ({"objectives": {"cost": "total"}}, "objectives.cost", 'did you mean "costs"?'),
    ({"data/text": {"langages": []}}, "data.text.langages", 'did you mean "languages"?'),
    ({"search/warm_start": "basline"}, "search.warm_start.source", "'none', 'baseline' or"),
    (
        {"search/warm_start": {"source": "nothing", "rank_agreement": 12}},
        "search.warm_start",
        "which source: baseline has",
    ),
    (
        {"search/warm_start": {"source": "nothing", "distil": True}},
        "search.warm_start",
        "distil trains converted modules, which source: baseline has",
    ),
    (
        {"search/warm_start": "nothing", "search/strategy": "sensitivity"},
        "search",
        "set search.warm_start to baseline",
    ),
    (
        {"search/warm_start": {"source": "nothing", "teacher": "baseline"}},
        "search.warm_start",
        "needs one that is trained first: source: baseline",
    ),
    (
        {"search/warm_start": {"source": "baseline", "arguments": {"teacher-weight": 0.5}}},
        "search.warm_start.arguments.teacher-weight",
        "set search.warm_start.teacher to baseline, and teacher-weight in",
    ),
    (
        {"training/arguments/criterion": "distilled_cross_entropy"},
        "training.arguments.criterion",
        "leave distilled_ out, and set search.warm_start.teacher to baseline",
    ),
    (
        {
            "search/warm_start": {"source": "baseline", "teacher": "baseline"},
            "training/arguments/adaptive-softmax-cutoff": "20,30",
        },
        "search.warm_start.teacher",
        "an adaptive softmax gives no logits",
    ),
    (
        {
            "search/warm_start": {"source": "baseline", "teacher": "baseline"},
            "training/arguments/criterion": "label_smoothed_cross_entropy_with_rdrop",
        },
        "search.warm_start.teacher",
        "no teacher teaches a model that is trained by label_smoothed_cross_entropy_with_rdrop",
    ),
    (
        {"search/warm_start": {"source": "baseline", "rank_agreement": 5}},
        "search.warm_start.rank_agreement",
        "must be 0 or at least 12",
    ),
    (
        {"search/warm_start": {"source": "baseline", "arguments": {"droopout": 0.1}}},
        "search.warm_start.arguments.droopout",
        "no such flag",
    ),
    (
        {"search/warm_start": "baseline", "replay": {}},
        "search.warm_start",
        "replayed learning curves start from scratch",
    ),
    ({"search/sampler": "tpee"}, "search.sampler", "but is 'tpee'"),
    ({"search/trials": "three"}, "search.trials", "valid integer, but is 'three'"),
    ({"search/trials": 0}, "search.trials", "greater than or equal to 1, but is 0"),
    ({"training": None}, "training", "is missing"),
    ({"name": "../up"}, "name", "but is '../up'"),
    ({"data/folder": "/nowhere/data"}, "data.folder", "/nowhere/data does not exist"),
    (
        {
            "training/arguments/encoder-attention-heads": 64,
            "training/arguments/encoder-embed-dim": 100,
        },
        "training.arguments.encoder-attention-heads",
        "64 heads do not divide a width of 100",
    ),
    (
        {"space/schemes/collaborative": {"shared_dim": [0, 4]}},
        "space.schemes.collaborative",
        "shared_dim must be at least 1, but is 0",
    ),
    (
        {"space/schemes/collaborative": {"shared_size": [4]}},
        "space.schemes.collaborative",
        "unknown option 'shared_size'; it has shared_dim",
    ),
    ({"space/schemes/multihead": {}}, "space.schemes.multihead", "unknown scheme 'multihead'"),
    ({"space": "no_such_space"}, "space (no_such_space)", "no search space file"),
    ({"space/sites": {"encoder": {"multi_head": {}}}}, "space.sites.encoder", "encoder_self"),
    ({"training/arguments/max-tokenz": 3}, "training.arguments.max-tokenz", "no such flag"),
    ({"training/arguments/optimizer": "adamm"}, "training.arguments.optimizer", "invalid choice"),
    ({"training/arguments/max-tokens": "many"}, "training.arguments.max-tokens", "must be a whole"),
    ({"training/arguments/save-dir": "x"}, "training.arguments.save-dir", "set by nas-attn itself"),
    ({"training/arguments/max-epoch": None}, "training.arguments", "give max-epoch or max-update"),
    ({"training/size": "iwslt"}, "training.size", "no size 'iwslt'; it has iwslt_de_en"),
    ({"training/seeds": [1, 1]}, "training.seeds", "the same seed stands twice"),
    (
        {"space/schemes/collaborative": {"shared_dim": 4}},
        "space.schemes.collaborative.shared_dim",
        "valid list, but is 4",
    ),
    (
        {"space/schemes/collaborative": {"shared_dim": [[4]]}},
        "space.schemes.collaborative.shared_dim.0",
        "must be a number, a word, true or false",
    ),
    (
        {"training/arguments/lr": [0.1]},
        "training.arguments.lr",
        "must be a number, a word, true or false",
    ),
    (
        {"space/schemes/grouped_head": {}},
        "space.schemes.grouped_head",
        "set training.arguments.criterion to grouped_label_smoothed_cross_entropy",
    ),
    (
        {
            "training/arguments/criterion": "grouped_label_smoothed_cross_entropy",
            "space/schemes/grouped_head": {"keep": ["pillars"]},
        },
        "space.schemes.grouped_head",
        "prunes, but nothing says when",
    ),
    ({"execution": {"executor": "slurm"}}, "execution.executor", "'local', 'ray' or 'simulated'"),
    ({"execution": {"executor": "simulated"}}, "execution.executor", "add the section replay"),
    (
        {"search/stopping": {"rule": "asha"}},
        "search.stopping.rule",
        "the rule of ASHA ranks by one objective",
    ),
    ({"objectives": {"metric": "accuraccy"}}, "objectives.metric", "does not log 'accuraccy'"),
    ({"objectives": {"costs": ["params"]}}, "objectives.costs.0", "'flops'"),
    ({"objectives": {"costs": []}}, "objectives.costs", "at least 1 item"),
    (
        {"objectives": {"costs": ["decoding_seconds"]}},
        "objectives.costs",
        "known only after training, so it cannot come first",
    ),
    (
        {"objectives": {"costs": ["total", "total"]}},
        "objectives.costs",
        "the same cost stands twice",
    ),
    ({"objectives": {"limits": {"total": -1}}}, "objectives.limits.total", "greater than 0"),
    (
        {"objectives": {"limits": {"decoding_seconds": 1}}},
        "objectives.limits.decoding_seconds",
        "'attention'",
    ),
    ({"resources": {"gpus": 1.5}}, "resources", "a fraction up to 1, or a whole number"),
    (
        {"execution": {"grace_seconds": 30}},
        "execution",
        "at least three times heartbeat_seconds",
    ),
    (
        {"training/arguments/decoder-embed-dim": 32},
        "training.arguments.share-all-embeddings",
        "requires --encoder-embed-dim to match --decoder-embed-dim",
    ),
    ({"training/arguments/valid-subset": "test"}, "training.arguments.valid-subset", "refused"),
    (
        {"search/warm_start": {"source": "baseline", "arguments": {"user-dir=x": True}}},
        "search.warm_start.arguments.user-dir=x",
        "no name of a flag",
    ),
    (
        {"search/warm_start": {"source": "baseline", "arguments": {"adam-betas": "exit()"}}},
        "search.warm_start.arguments.adam-betas",
        "two numbers",
    ),
    (
        {"search/warm_start": {"source": "baseline", "arguments": {"max-update": 0}}},
        "search.warm_start.arguments",
        "a trial never ends",
    ),
    (
        {"training/arguments/vote-at-epoch": 1},
        "training.arguments.vote-at-epoch",
        "set training.arguments.criterion to grouped_label_smoothed_cross_entropy",
    ),
    ({"training/seeds": [-1]}, "training.seeds.0", "greater than or equal to 0"),
    ({"training/seeds": [2**31]}, "training.seeds.0", "less than or equal to 2147483647"),
    ({"search/seed": -1}, "search.seed", "greater than or equal to 0"),
    ({"name": "n" * 300}, "name", "at most 200 characters"),
    ({"data/folder": "~nosuchuser/x"}, "data.folder", "no home folder of 'nosuchuser'"),
    ({"data/folder": "x" * 300}, "data.folder", "more than 255 bytes"),
    ({"data/folder": "a:b"}, "data.folder", "at which fairseq would cut it"),
    ({"data/folder": "a\nb"}, "data.folder", "must be one line"),
    ({"data/text": {"folder": "é" * 200}}, "data.text.folder", "more than 255 bytes"),
    ({"objectives": {"metric": "--user-dir=x"}}, "objectives.metric", "should match pattern"),
    ({"objectives": {"limits": {"total": "20 k"}}}, "objectives.limits.total", "is no amount"),
    ({"objectives": {"limits": {"total": float("nan")}}}, "objectives.limits.total", "finite"),
    ({"execution": {"hang_minutes": float("inf")}}, "execution.hang_minutes", "finite number"),
    ({"training/arguments/lr": float("inf")}, "training.arguments.lr", "finite number"),
    (
        {"replay": {"seconds": 1}, "objectives": {"costs": ["total", "peak_memory"]}},
        "objectives.costs",
        "nothing is trained",
    ),
    (
        {"replay": {"seconds": 1}, "objectives": {"costs": ["total", "decoding_seconds"]}},
        "objectives.costs",
        "nothing is decoded",
    ),
]


@pytest.mark.parametrize(("changes", "key", "message"), BROKEN, ids=[key for _, key, _ in BROKEN])
def test_broken_studies_are_refused(
    changes: dict[str, Any], key: str, message: str, tmp_path: Path, tiny_translation: PreparedData
) -> None:
    path = write(tmp_path, tiny_translation.folder, changes)
    with pytest.raises(ConfigError) as caught:
        load_study(str(path), runs=tmp_path / "runs")
    messages = {fault.key: fault.message for fault in caught.value.faults}
    assert key in messages, messages
    assert message in messages[key]
    assert str(path) in str(caught.value)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError) as without_file:
        Study.from_config(read_yaml(path))
    assert without_file.value.faults == caught.value.faults


def test_only_keys_like_the_mistyped_one_are_proposed(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    path = write(tmp_path, tiny_translation.folder, {"search/colour": 3, "colour": 3})
    with pytest.raises(ConfigError) as caught:
        load_study(str(path), runs=tmp_path / "runs")
    assert {fault.message for fault in caught.value.faults} == {"unknown key"}


def test_the_whole_study_loads(tmp_path: Path, tiny_translation: PreparedData) -> None:
    study = load_study(str(write(tmp_path, tiny_translation.folder)), runs=tmp_path)
    assert study.space.size == 27
    low, high = study.axis_range()
    assert low < high
    job = study.jobs.search_trial(
        7, study.space.plan([u.alternatives[0] for u in study.space.units])
    )
    command = job.runs[0].command
    assert command[0] == "fairseq-train"
    assert "--required-batch-size-multiple=1" in command
    assert job.parameters == high


def test_the_data_must_suit_the_task(
    tmp_path: Path, tiny_language: PreparedData, tiny_translation: PreparedData
) -> None:
    with pytest.raises(ConfigError, match=r"data\.folder: .* is no data set for translation"):
        load_study(str(write(tmp_path, tiny_language.folder)))
    text = {"folder": str(tmp_path), "languages": ["en", "de"]}
    changes = {"training/task": "language_modeling", "data/text": text}
    with pytest.raises(ConfigError, match=r"data\.text\.languages: must name source and target"):
        load_study(str(write(tmp_path, tmp_path / "absent", changes)))


def test_studies_with_flags_that_are_refused_now_can_be_read(
    tmp_path: Path, tiny_translation: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    flags = {"bpe": "gpt2", "valid_subset": "test", "user-dir": str(tmp_path / "absent")}
    changes = {f"training/arguments/{name}": value for name, value in flags.items()}
    path = str(write(tmp_path, tiny_translation.folder, changes))
    study = load_study(path, is_read_only=True)
    assert study.settings()["training"]["arguments"].items() >= flags.items()
    study.axis_range()
    assert "training.arguments bpe, user-dir, valid_subset any more" in caplog.text
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert {fault.key.rpartition(".")[2] for fault in caught.value.faults} == flags.keys()
    with pytest.raises(ConfigError, match=r"user-dir=x: no name of a flag"):
        load_study(path, overrides=["training.arguments={user-dir=x: 1}"], is_read_only=True)


def test_all_faults_in_one_message(tmp_path: Path, tiny_translation: PreparedData) -> None:
    changes = {
        "data/folder": "/nowhere",
        "training/arguments/max-tokenz": 3,
        "space": "no_such_space",
    }
    with pytest.raises(ConfigError, match="3 errors"):
        load_study(str(write(tmp_path, tiny_translation.folder, changes)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("name: a\nname: b\n", "the key 'name' stands twice"),
        ("!!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_files_that_are_no_study(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_study(str(path))


def test_the_command_exits_with_2(tmp_path: Path) -> None:
    path = write(tmp_path, Path("/nowhere"))
    command = [
        sys.executable,
        "-m",
        "nas_attn.cli.main",
        "search",
        str(path),
        "--runs",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "data.folder: folder /nowhere does not exist" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("grouped_head", {"keep": ["threshold"], "vote_threshold": [0.5], "num_groups": [2]}),
        ("collaborative", {"shared_dim": [16], "dim_threshold": [0.2]}),
    ],
)
def test_limits_go_by_what_pruning_can_leave(
    scheme: str, options: dict[str, Any], tmp_path: Path, tiny_translation: PreparedData
) -> None:
    changes = {
        "space": {"schemes": {scheme: options}},
        "training/arguments/criterion": "grouped_label_smoothed_cross_entropy",
        "training/arguments/vote-at-update": 2,
        "objectives": {"costs": ["attention"], "limits": {"attention": 3200}},
    }
    path = str(write(tmp_path, tiny_translation.folder, changes))
    study = load_study(path)
    study.check_limits()
    low, high = study.axis_range()
    assert (
        low
        < 3200
        < high
        == study.costs.known(
            study.space.plan([unit.alternatives[0] for unit in study.space.units])
        )["attention"]
    )
    with pytest.raises(ConfigError, match=f"is under {low - 1:,}: the least is {low:,}"):
        load_study(path, overrides=[f"objectives.limits={{attention: {low - 1}}}"]).check_limits()


def test_overrides(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = str(write(tmp_path, tiny_translation.folder))
    study = load_study(path, overrides=["search.trials=7", "training.arguments.lr=0.5"])
    assert study.config.search.trials == 7
    assert study.config.training.arguments["lr"] == 0.5
    for bad, message in (
        ("search.trials", "KEY.PATH=VALUE"),
        ("name.x=1", "no section"),
        ("description={", "is not YAML"),
        ("x=[1", "is not YAML"),
        ("x=2024-13-45", "x: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_study(path, overrides=[bad])


def test_a_data_set_of_other_settings_is_not_reused(tmp_path: Path) -> None:
    demo = {"data": {"folder": str(tmp_path / "set"), "demo": {"train_sentences": 50}}}
    path = write(tmp_path, tmp_path, demo)
    load_study(str(path)).prepare_data()
    load_study(str(path))
    with pytest.raises(ConfigError, match="was made from"):
        load_study(str(path), overrides=["data.demo.train_sentences=60"])


def test_numbers_as_people_write_them(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = write(tmp_path, tiny_translation.folder, {"objectives": {"limits": {"total": "200k"}}})
    text = path.read_text()
    path.write_text(text.replace("lr: 0.003", "lr: 3e-3").replace("trials: 3", "trials: 2e1"))
    config = load_study(str(path)).config
    assert config.objectives.limits == {"total": 200_000}
    assert (config.training.arguments["lr"], config.search.trials) == (0.003, 20)


def test_a_folder_that_fairseq_would_cut(tmp_path: Path, tiny_translation: PreparedData) -> None:
    study = load_study(str(write(tmp_path, tiny_translation.folder)), runs=tmp_path / "a:b")
    study.jobs.search_trial(1, study.baseline)
    with pytest.raises(UsageError, match="cuts names of files at ':'"):
        study.jobs.confirmation(1, study.baseline, [2])


def test_sections_are_merged(tmp_path: Path, tiny_translation: PreparedData) -> None:
    path = write(tmp_path, tiny_translation.folder)
    text = path.read_text().replace("  arguments:\n", "  arguments: &base\n")
    more = "  warm_start: {source: baseline, arguments: {<<: *base, dropout: 0.2}}\n"
    path.write_text(text + more)
    assert path.read_text() != text
    warm = load_study(str(path), overrides=["training.arguments.lr=0.1"]).config.search.warm_start
    assert (warm.arguments["dropout"], warm.arguments["lr"]) == (0.2, 0.003)


def test_dictionaries_apart_cannot_share_embeddings(
    tmp_path: Path, tiny_translation: PreparedData
) -> None:
    folder = tmp_path / "apart"
    shutil.copytree(tiny_translation.folder, folder)
    dictionary = next(folder.glob("dict.*.txt"))
    dictionary.write_text(dictionary.read_text() + "another 1\n")
    with pytest.raises(ConfigError, match=r"share-all-embeddings: .* requires a joined dictionary"):
        load_study(str(write(tmp_path, folder))).check_limits()
    apart = write(tmp_path, folder, {"training/arguments/share-all-embeddings": False})
    load_study(str(apart)).check_limits()


def test_a_name_that_no_file_has(tmp_path: Path) -> None:
    for name in ("n" * 300, "n" * 300 + ".yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_study(name)


@pytest.mark.parametrize("name", shipped_names("search_spaces"))
def test_shipped_spaces(name: str) -> None:
    assert load_space_config(name).description


@pytest.mark.parametrize("name", shipped_names("studies"))
def test_shipped_studies(name: str, tmp_path: Path) -> None:
    overrides = [f"data.folder={tmp_path}/set"]
    tree = yaml.safe_load((shipped_folder("studies") / f"{name}.yaml").read_text())
    if "text" in tree["data"]:
        text = tmp_path / "text"
        text.mkdir()
        for language in tree["data"]["text"].get("languages", ["txt"]):
            for split in ("train", "valid", "test"):
                (text / f"{split}.{language}").write_text("a b c\n")
        overrides.append(f"data.text.folder={text}")
    study = load_study(name, overrides=overrides)
    assert study.config.name == name
    assert study.config.description


def test_a_shipped_space_skips_what_does_not_fit_and_a_user_s_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        study = load_study("demo", overrides=["space=inherited_per_layer"])
    values = {d.name: d.values for unit in study.space.units for o in unit.options for d in o}
    assert values["encoder_self.0.reduced_key.key_dim"] == (4, 8, 16, 32)
    assert "left out for this model: reduced_key with key_dim 0.03125 of the embed" in caplog.text
    assert "4 heads do not divide a key_dim of 2" in caplog.text
    own = tmp_path / "own.yaml"
    shutil.copy(shipped_folder("search_spaces") / "inherited_per_layer.yaml", own)
    with pytest.raises(ConfigError, match="4 heads do not divide a key_dim of 2"):
        load_study("demo", overrides=[f"space={own}"])
    with pytest.raises(ConfigError, match=r"schemes.reduced_key: .*4 heads do not divide"):
        space_over(str(own), study.space.shapes)
    assert space_folder("inherited_per_layer") == "inherited_per_layer"
    named = space_folder(str(own))
    own.write_text(own.read_text() + "\n")
    assert named.startswith("own-") and space_folder(str(own)) != named


def test_what_is_shipped() -> None:
    assert len(shipped_names("search_spaces")) >= 3
    assert set(shipped_names("studies")) >= {"demo", "multi30k_en_de", "wikitext2"}
    for folder in ("search_spaces", "studies"):
        assert not list(shipped_folder(folder).rglob("*.py"))
