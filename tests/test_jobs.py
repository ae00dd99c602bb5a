"""The commands as a user types them."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import ROOT, SMALL, best_weights, call, disk_of, has_weights, last_json

from distributed.sweep.plan import make_plan, new_sweep
from jobs import console
from jobs.train import over_preset
from jobs.tune import run as carry_out
from model.config import TrainingConfig
from model.data.dataset import Dataset
from model.data.examples import MAX_TOKENS
from model.inference.bundle import load_bundle
from model.inference.extractor import Extractor
from model.presets import preset_values

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = [f"--set=tagger.{name}={size}" for name, size in SMALL.items()]


def refused(*arguments: str, parts: tuple[str, ...]) -> None:
    """Exit code 2, one message with all the parts, no traceback, nothing on stdout."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    assert not result.stdout
    for part in parts:
        assert part in result.stderr, f"{part!r} is not in {result.stderr}"


def test_help_is_short_too_and_the_version_is_that_of_the_project():
    for arguments in ((), ("serve",), ("tune",)):
        short, long = call(*arguments, "-h"), call(*arguments, "--help")
        assert short.exit_code == long.exit_code == 0 and short.stdout == long.stdout and "-h, --help" in long.stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert call("--version").stdout == f"{project['version']}\n"


def test_prepare_prints_what_was_left_out_and_why(tmp_path: Path):
    source = tmp_path / "a.tsv"
    source.write_text("".join(f"text {i} of rain\train\n" for i in range(50)) + "red car\tdog\n")
    result = call("prepare", str(source), "--valid", str(source), "--out", str(tmp_path / "d"), "--json")
    assert result.exit_code == 0
    assert "1 x keyphrase not in its text" in result.stderr and f"{source}:51" in result.stderr
    assert last_json(result.stdout)["splits"]["train"]["rows"] == 50


def test_an_error_begins_on_a_line_below_the_progress(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    moments = iter(range(9))
    monkeypatch.setattr("jobs.console.time.monotonic", lambda: next(moments))
    with pytest.raises(ValueError), console.progress_counter("texts") as report:
        report(1000)
        report(9)
        raise ValueError
    console.echo("error")
    assert capsys.readouterr().err == "\r1,000 texts  1,000/s\033[K\r9 texts  4/s\033[K\nerror\n"


def test_evaluate_measures_what_extract_finds_in_long_texts(small_bundle: str, small_dataset: str, tmp_path: Path):
    words = [word for each in Dataset(small_dataset).texts("test") for word in each.text.split() if word.isalpha()]
    # A border inside the text would divide a name in one of them.
    texts = [" ".join(words[begin : begin + MAX_TOKENS]) for begin in range(20)]
    found = [{"text": text, "spans": [each[1:3] for each in Extractor.load(small_bundle)(text)]} for text in texts]
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in found))
    metrics = last_json(call("evaluate", small_bundle, "--data", str(path), "--json").stdout)
    assert metrics["rows"] == 20 and metrics["keyphrase_f1"] == 1


def test_evaluate_reads_datasets_and_labeled_files_alike(small_bundle: str, small_dataset: str):
    of_dataset = call("evaluate", small_bundle, "--data", small_dataset, "--split", "test", "--json")
    of_file = call("evaluate", small_bundle, "--data", str(Path(small_dataset).parent / "test.jsonl"), "--json")
    assert of_dataset.exit_code == of_file.exit_code == 0
    metrics = last_json(of_dataset.stdout)
    assert metrics == last_json(of_file.stdout) and metrics["rows"] == 200
    assert {
        f"{h}_{n}" for h in ("keyphrase", "keyword") for n in ("f1", "f1_low", "f1_high", "precision", "recall")
    } <= set(metrics)
    assert metrics["keyphrase_f1_low"] < metrics["keyphrase_f1"] < metrics["keyphrase_f1_high"]
    plain = call("evaluate", small_bundle, "--data", small_dataset)
    assert f"{metrics['keyphrase_f1']:.4f}" in plain.stdout and "unseen word" in plain.stdout and not plain.stderr
    assert len(of_dataset.stdout.splitlines()) == 1 and plain.stdout in of_dataset.stderr


def test_evaluate_and_extract_tell_of_texts_without_annotations_in_a_directory(small_bundle: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text("the salt road")
    (tmp_path / "a.ann").write_text("T1\tKey 4 13\tsalt road\n")
    (tmp_path / "b.txt").write_text("nobody labeled this")
    for done in (call("evaluate", small_bundle, "--data", str(tmp_path)), call("extract", small_bundle, str(tmp_path))):
        assert done.exit_code == 0, done.output
        assert f"{tmp_path}: 1 texts without keyphrases are left out, such as b.txt" in done.stderr


def test_extract_prints_places_and_scores_from_stdin_and_files(small_bundle: str, small_dataset: str, tmp_path: Path):
    known = (labeled.text for labeled in Dataset(small_dataset).texts("train"))
    extractor = Extractor.load(small_bundle)
    texts = [next(text for text in known if any(" " in each.text for each in extractor(text))), "", "nothing שלום 😀"]
    lines = call("extract", small_bundle, "--json", stdin="\n".join(texts) + "\n").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["text"] for answer in answers] == texts
    for answer in answers:
        for found in answer["keyphrases"]:
            assert answer["text"][found["start"] : found["end"]] == found["text"] and 0 < found["score"] <= 1
    assert answers[0]["keyphrases"]
    jsonl = tmp_path / "texts.jsonl"
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text))
    plain = call("extract", small_bundle, str(jsonl)).stdout.splitlines()
    assert plain[0].startswith("1\t") and "[" in plain[0] and plain[1].startswith("2")
    broken = json.dumps({"text": texts[0].replace(" ", "\n")})  # a text has one line, whatever its keyphrases hold
    assert call("extract", small_bundle, stdin=f"{broken}\n{broken}\n").stdout.splitlines() == [
        plain[0],
        f"2{plain[0][1:]}",
    ]


def test_what_cannot_be_used_is_refused_with_exit_code_2(small_bundle: str, small_dataset: str, tmp_path: Path):
    bad, out = tmp_path / "bad.tsv", str(tmp_path / "out")
    bad.write_text("good text\tgood\ntwo\ttabs\there\nmore text\tmore\n")
    refused("prepare", str(bad), "--out", out, parts=(f"{bad}:2", "2 tabs"))
    refused("prepare", str(tmp_path / "none"), "--out", out, parts=("no such file",))
    refused("prepare", str(bad), "--out", small_dataset, parts=("exists already", "--overwrite"))
    refused("prepare", str(bad), "--out", f"{bad}/inside", "--skip-bad-lines", parts=("bad.tsv",))
    refused("evaluate", str(tmp_path / "none"), "--data", small_dataset, parts=("no such bundle",))
    gold = str(Path(small_dataset).parent / "test.jsonl")
    refused("prepare", gold, "--out", "", parts=("the path of a file or folder is empty",))
    refused("evaluate", small_bundle, "--data", str(tmp_path), parts=("no dataset.json",))
    refused("evaluate", small_bundle, "--data", small_dataset, "--split", "dev", parts=("dev", "train, valid, test"))
    refused("evaluate", small_bundle, "--data", small_dataset, "--format", "tsv", parts=("--format", "leave them out"))
    refused("evaluate", small_bundle, "--data", gold, "--split", "train", parts=("--split train", "leave it out"))
    refused("prepare", gold, "--dry-run", "--json", parts=("--dry-run and --json",))
    refused("extract", small_bundle, str(tmp_path / "none"), parts=("no such file",))
    refused("extract", small_bundle, str(bad), "--device", "abacus", parts=("device abacus", "choose cpu"))
    refused("evaluate", small_bundle, "--data", small_dataset, "--device", "abacus", parts=("device abacus",))
    # Told before the texts are read, and the measurement is made:
    refused("evaluate", small_bundle, "--data", str(tmp_path / "none"), "--device", "abacus", parts=("device abacus",))
    inside = ("--mistakes", f"{bad}/inside")
    refused(
        "evaluate", small_bundle, "--data", str(tmp_path / "none"), *inside, parts=(f"{bad}", "choose another place")
    )
    bad.write_bytes(b"fine\n\xff\xff\n")
    assert call("extract", small_bundle, str(bad)).exit_code == 2
    assert not Path(out).exists()


def test_a_sweep_that_cannot_be_is_refused_before_ray_starts(small_dataset: str, tmp_path: Path):
    tune = ("tune", "--data", small_dataset, "--storage", str(tmp_path / "runs"))
    refused("tune", parts=("data is missing", "--data"))
    refused(*tune, "--gpus-per-trial", "1", parts=("1 x (1 CPU, 1 GPU)", "0 GPUs", "room for 0"))
    refused(*tune, "--workers-per-trial", "60", parts=("60 x (1 CPU", "room for"))
    refused(*tune, "--set", "run.workers=2", parts=("run.workers", "--workers-per-trial"))
    refused(*tune, "--grace", "10", parts=("--grace 10", "--max-epochs 9"))
    refused(*tune, "--eta", "1.5", parts=("--eta 1.5", "2"))
    refused(*tune, "--space", "training.rate=1:2", parts=("training.rate: is unknown", "training.lr"))
    refused(*tune, "--metric", "valid/bleu", parts=("--metric valid/bleu", "valid/keyphrase_f1"))
    refused(*tune, "--sampler", "sobol", parts=("--sampler sobol", "tpe"))
    refused(*tune, "--sampler", "ablation", parts=("nothing differs from the defaults", "--preset best"))
    refused(*tune, "--sampler", "ablation", "--trials", "5", parts=("--trials 5", "--sampler ablation", "leave it out"))
    refused(*tune, "--space", "record", "--max-epochs", "2", parts=("--max-epochs 2", "--sampler record"))
    refused(*tune, "--space", "record", "--sampler", "tpe", parts=("--space record", "leave out --sampler tpe"))
    refused(*tune, "--time-budget", "soon", parts=("--time-budget soon", "2h"))
    refused(*tune, "--time-budget", "5", parts=("--time-budget 5", "2h"))
    refused(*tune, "--set", "training.epochs=3", parts=("--max-epochs",))
    refused(*tune, "--lr", "0.001", "--space", "training.lr=1e-3,1e-4", parts=("leave one of the two out",))
    refused("tune", "--resume", "ghost", "--storage", str(tmp_path), parts=("ghost", "no such sweep"))
    refused("tune", "--resume", "ghost", "--lr", "1", parts=("keeps its configuration, except for run",))
    refused("report", str(tmp_path), parts=("neither a sweep nor a run",))
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_is_stopped_before_it_began_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distributed.tune.driver.tune", stop)
    monkeypatch.setattr("os._exit", sys.exit)  # the test goes on
    run = {"name": "s", "storage": str(tmp_path)}
    with pytest.raises(SystemExit) as code:
        carry_out(new_sweep(make_plan({"config": {"data": "d", "run": run}})))
    said = capsys.readouterr().err
    assert code.value.code == 130 and "stopped before the sweep began" in said and "--resume" not in said


def test_a_sweep_can_be_looked_at_before_it_runs(small_dataset: str, tmp_path: Path):
    result = call(
        "tune", "--data", small_dataset, "--storage", str(tmp_path / "runs"), "--dry-run", "--max-epochs", "30"
    )
    assert result.exit_code == 0 and not (tmp_path / "runs").exists()
    plan = last_json(result.stdout)
    assert plan["rungs"] == [1, 3, 9, 27] and plan["space"]["training.lr"] == "log:0.0001:0.01"
    assert len(plan["first"]) == 5 and plan["plan"]["config"]["training"]["patience"] == 0


def test_a_training_that_cannot_be_is_refused_before_ray_starts(small_dataset: str, tmp_path: Path):
    train = ("train", "--data", small_dataset, "--storage", str(tmp_path / "runs"))
    refused("train", parts=("data is missing", "--data"))
    refused("train", "--data", str(tmp_path), parts=("no dataset.json", "prepare"))
    refused(*train, "--alpha", "1.5", parts=("training.alpha", "1.5"))
    refused(*train, "--lr", "0", parts=("training.lr",))
    refused(*train, "--set", "training.rate=1", parts=("training.rate is unknown", "training.lr"))
    refused(*train, "--workers", "65", parts=("65 workers", "smallest batch has 63"))
    refused(*train, "--workers", "60", parts=("60 CPUs", "the cluster has"))
    refused(*train, "--device", "cuda", parts=("1 GPUs", "cluster has 0"))
    refused(*train, "--config", str(tmp_path / "none.yaml"), parts=("none.yaml",))
    refused("train", "--resume", "ghost", "--storage", str(tmp_path), parts=("ghost", "no run of this name"))
    refused("train", "--resume", "ghost", "--name", "other", parts=("--resume ghost", "other", "leave --name out"))
    assert not (tmp_path / "runs").exists()


def test_vectors_of_another_size_are_refused(small_dataset: str, tmp_path: Path):
    vectors, source = tmp_path / "v.txt", str(Path(small_dataset).parent / "train.jsonl")
    vectors.write_text("rain 1 2 3\nsnow 1 2 3\n")
    assert call("prepare", source, "--out", str(tmp_path / "d"), "--vectors", str(vectors)).exit_code == 0
    refused(
        "train",
        "--data",
        str(tmp_path / "d"),
        parts=("3 values", "tagger.embedding_dim is 300", "tagger.embedding_dim=3"),
    )


def test_dry_run_prints_the_plan_and_does_nothing(small_dataset: str, tmp_path: Path):
    result = call("train", "--data", small_dataset, "--storage", str(tmp_path / "runs"), "--lr", "0.5", "--dry-run")
    plan = last_json(result.stdout)
    assert plan["config"]["training"]["lr"] == 0.5 and plan["asks"]["workers"] == 1 and plan["cluster"]["cpus"] >= 1
    assert not (tmp_path / "runs").exists()


def test_flags_win_over_set_which_wins_over_the_file(small_dataset: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {lr: 0.1, alpha: 0.1, epochs: 1}\n")
    given = ["--config", str(path), "--set", "training.alpha=0.2", "--set", "training.epochs=2", "--epochs", "3"]
    training = last_json(call("train", "--data", small_dataset, *given, "--dry-run").stdout)["config"]["training"]
    assert (training["lr"], training["alpha"], training["epochs"]) == (0.1, 0.2, 3)


def test_a_preset_fits_the_size_of_the_dataset_where_nothing_else_is_given(small_dataset: str, tmp_path: Path):
    def training(*given: str) -> Any:
        arguments = ("train", "--data", small_dataset, "--storage", str(tmp_path), "--dry-run", *given)
        return last_json(call(*arguments).stdout)["config"]["training"]

    fitted = preset_values("best", Dataset(small_dataset).rows("train"))["training"]
    assert fitted["epochs"] > TrainingConfig().epochs
    assert training("--preset", "best").items() >= fitted.items()
    assert training("--preset", "best", "--epochs", "2")["epochs"] == 2
    labeled = over_preset("best", {"training": {"teacher": ["labels"]}}, small_dataset)["training"]
    assert labeled == preset_values("best")["training"] | {"teacher": ["labels"]}
    searched = ("tune", "--data", small_dataset, "--storage", str(tmp_path), "--dry-run", "--preset", "best")
    assert last_json(call(*searched).stdout)["plan"]["max_epochs"] == fitted["epochs"]


def test_an_unknown_command_and_a_missing_argument_are_the_users_mistakes():
    assert call("fly").exit_code == 2 and call("prepare").exit_code == 2


def test_a_full_disk_is_told_and_leaves_nothing(command, tmp_path: Path, small_dataset: str):
    with disk_of("64k", tmp_path / "disk") as disk:
        done = command("prepare", str(Path(small_dataset).parent / "train.jsonl"), "--out", str(disk / "d"))
        assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr
        assert list(disk.iterdir()) == []


@pytest.mark.ray
@pytest.mark.long
def test_a_disk_that_fills_during_training_is_told(call_on_cluster, tmp_path: Path, small_dataset: str):
    with disk_of("1m", tmp_path / "disk") as disk:
        size = [
            "--set",
            "tagger.embedding_dim=48",
            "--set",
            "tagger.keyword_hidden=8",
            "--set",
            "tagger.keyphrase_hidden=8",
        ]
        size += ["--set", "run.retries=0"]  # trying again would not make room
        done = call_on_cluster("train", "--data", small_dataset, "--storage", str(disk), "--epochs", "3", *size)
        assert done.exit_code == 2 and "No space left" in done.stderr and "start it again" in done.stderr, done.stderr
        assert isinstance(done.exception, SystemExit) and "Traceback" not in done.stderr
        assert not list(disk.glob("*/bundle")) and not list(disk.glob("*/config.json"))


def test_extract_into_a_pipe_that_closes_early_ends_quietly(small_bundle: str):
    script = f"yes 'cheering for Giants' | {sys.executable} -m jobs extract {small_bundle} | head -2; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0" and not done.stderr


def test_a_command_goes_on_when_nobody_reads_its_messages(small_bundle: str, tmp_path: Path):
    source, out = tmp_path / "a.conll", tmp_path / "found"
    source.write_text("Ostby\tB\nruns\tO\n\nrain\tO\n")  # of whose format there is a message before the work
    command = f"{sys.executable} -m jobs extract {small_bundle} {source} --out {out} --json"
    script = f"{{ {command} 3>&1 1>&2 2>&3 3>&-; echo $? >{tmp_path}/code; }} | true"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (tmp_path / "code").read_text() == "0\n" and json.loads(done.stderr)["texts"] == 2
    assert json.loads((out / "extraction.json").read_text())["texts"] == 2


def test_prepare_reads_standard_input_in_place_of_a_file(tmp_path: Path):
    jobs = f"{sys.executable} -m jobs prepare - --dry-run"
    for script, code, shown in (
        (f"printf 'a bar here\tbar\n' | {jobs}", 0, "a [bar] here"),
        (f"{jobs} </dev/null", 2, "is empty"),
        (f"{jobs} <&-", 2, "is empty"),
    ):
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == code and shown in done.stdout + done.stderr, done
        assert "Traceback" not in done.stderr


def test_closed_streams_are_like_empty_ones(small_bundle: str, tmp_path: Path):
    source, out = tmp_path / "a.tsv", tmp_path / "d"
    source.write_text("".join(f"text {i} of rain\train\n" for i in range(50)))
    jobs = f"{sys.executable} -m jobs"
    prepare = f"{jobs} prepare {source} --valid {source} --out {out} --json 2>&- <&-"
    done = subprocess.run(["bash", "-c", prepare], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["splits"]["train"]["rows"] == 50
    for closed in ("<&-", "<&- >&-", "</dev/null >&- 2>&-"):
        script = f"{jobs} extract {small_bundle} {closed}"
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), closed


def stop(sign: signal.Signals, moment: str, *arguments: str, address: str = "") -> tuple[int, str]:
    """Exit code and stderr of a training, as a process of its own, that gets a signal at its first line of a kind."""
    command = [sys.executable, "-m", "jobs", "train", *arguments]
    environment = os.environ | {"WANDB_MODE": "offline", "RAY_ADDRESS": address}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr
    for line in process.stderr:
        if line.startswith(moment):
            process.send_signal(sign)
            break
    rest = process.stderr.read()
    return process.wait(60), rest


@pytest.mark.ray
@pytest.mark.parametrize("stops", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_stopped_training_says_how_to_go_on(call_on_cluster, small_dataset: str, tmp_path: Path, stops: int):
    """Stopped in the middle and gone on with, also twice, the run ends with the weights of one that was never stopped."""
    settings = ["--epochs", "30", "--set", "training.patience=0", "--set", "run.cpus_per_worker=1", *TINY]
    begin = ["--data", small_dataset, "--name", "stopped", "--storage", str(tmp_path), *settings]
    resume = ["--resume", "stopped", "--storage", str(tmp_path)]
    here = ray.get_runtime_context().gcs_address
    for sign, code, moment, arguments, address in (
        (signal.SIGINT, 130, "epoch 2/30", begin, "" if stops == 2 else here),
        (signal.SIGTERM, 143, "epoch", resume, here),
    )[:stops]:
        returned, rest = stop(sign, moment, *arguments, address=address)
        assert returned == code, rest
        assert "--resume stopped" in rest and "Traceback" not in rest
        assert list((tmp_path / "stopped").glob("checkpoint_epoch_*"))
        assert not (tmp_path / "stopped" / "bundle").exists()
    done = call_on_cluster("train", *resume, "--json")
    assert done.exit_code == 0, done.stderr
    result = last_json(done.stdout)
    assert result["epochs"] == 30 and result["name"] == "stopped"
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 31))
    again = call_on_cluster("train", *resume, "--json")
    assert "finished already" in again.stderr and last_json(again.stdout) == result
    assert has_weights(str(tmp_path / "stopped" / "bundle"), best_weights(load_bundle(result["bundle"]).config))


@pytest.mark.ray
@pytest.mark.long
def test_a_training_that_diverges_is_told_with_step_lr_and_checkpoint(
    call_on_cluster, small_dataset: str, tmp_path: Path
):
    settings = ["--set", "training.optimizer=sgd", "--set", "training.max_grad_norm=0", *TINY]
    done = call_on_cluster(
        "train", "--data", small_dataset, "--storage", str(tmp_path), "--lr", "1e38", "--workers", "1", *settings
    )
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.stderr
    assert "Traceback" not in done.stderr
    assert "no longer a number" in done.stderr and "step" in done.stderr and "1e+38" in done.stderr
    assert "no checkpoint yet" in done.stderr


@pytest.mark.ray
def test_the_demo_goes_the_whole_way(command, tmp_path: Path):
    folder = str(tmp_path / "Zürich demo")
    # Neither warnings as errors, which would end Ray's processes, nor a locale that is not UTF-8 does any harm.
    environment = {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"}
    done = command("demo", "--folder", folder, "--texts", "2000", "--epochs", "1", "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert "🙏" in done.stdout and f"-m jobs extract '{folder}/" in done.stderr
    result = last_json(done.stdout)
    assert Path(result["bundle"], "config.json").exists() and 0 <= result["test"]["keyphrase_f1"] <= 1
