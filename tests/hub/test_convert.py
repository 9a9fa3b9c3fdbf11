"""Conversions of whole pairs: what they answer, what interrupts them, what other loaders make of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxmtp
from mlxmtp.convert import run as carrying_out
from mlxmtp.convert import slices as slices_module
from mlxmtp.convert import tasks as tasks_module
from mlxmtp.convert.compare import compare
from mlxmtp.convert.plan import ConversionPlan, plan_conversion
from mlxmtp.convert.recipe import Recipe, make_recipe
from mlxmtp.convert.run import Agreement, StepJournal, Watch, convert
from mlxmtp.decode.compile import Rounds
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import ConversionError, LoadError, MlxmtpError, UsageError
from mlxmtp.machine.memory import weight_bytes
from mlxmtp.models.config import read_config
from mlxmtp.models.safetensors import Layout, lay_out, read_folder
from mlxmtp.models.tensors import tensors
from tests.golden import FAMILIES, FOLDER, PROMPTS, load_golden
from tests.hub.hub_server import folder_files

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "assets" / "pocket"
IDS = [2, *(3 + at * 37 % 120 for at in range(60))]


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounds, "build", lambda *_: None)  # none are built behind these tests


def plan(source: Path, dest: Path, recipe: Recipe | None = None, *, drafter: bool = True) -> ConversionPlan:
    chosen = make_recipe({}) if recipe is None else recipe
    return plan_conversion(source / "target", source / "drafter" if drafter else None, dest, chosen, origin="test")


def answer(folder: Path, prompt: list[int], count: int) -> tuple[list[int], int]:
    """Greedy tokens, and how many drafted ones were kept."""
    rounds = list(mlxmtp.load(folder).rounds(prompt, max_tokens=count, stop=[], num_draft_tokens=3))
    return [token for one in rounds for token in one.tokens], sum(one.accepted for one in rounds)


def models(folder: Path) -> list[Path]:
    """What any tool would take for a model at or beside `folder`: itself and its neighbours."""
    places = [item for item in folder.parent.iterdir() if item.is_dir()]
    return [place for place in places if (place / "config.json").exists()]


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_unpacked_pairs_answer_like_their_sources(family: str, tmp_path: Path) -> None:
    golden, dest = load_golden(family), tmp_path / "made"
    convert(plan(FOLDER / family, dest, make_recipe({"bits": 16})))
    for name in PROMPTS:
        record = golden.records[name]
        said, accepted = answer(dest, record.prompt, len(record.greedy))
        assert said == record.greedy
        model = mlxmtp.load(golden.target, golden.drafter)
        drafts = model.rounds(record.prompt, max_tokens=len(record.greedy), stop=[], num_draft_tokens=3)
        assert accepted == sum(one.accepted for one in drafts)
    assert compare(golden.target, dest, IDS) == Agreement(0.0, 1.0, len(IDS))


@pytest.mark.few(5)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags", [{"bits": 8}, {"mode": "mxfp8"}, {"bits": 5, "draft_bits": 8}], ids=str)
def test_packed_pairs_run_with_their_drafters(family: str, flags: dict[str, Any], tmp_path: Path) -> None:
    """These networks are random, so rounding carries far: 8 bits stay within half a nat of the source, fewer do not."""
    golden, dest = load_golden(family), tmp_path / "made"
    made = convert(plan(FOLDER / family, dest, make_recipe(flags)), compare=lambda a, b: compare(a, b, IDS))
    assert made.agreement is not None
    assert 0 < made.agreement.kl < (0.5 if flags == {"bits": 8} else 6)
    prompt = golden.records["short"].prompt
    drafted = answer(dest, prompt, 24)[0]
    plain = mlxmtp.load(dest, drafter=False).rounds(prompt, max_tokens=24, stop=[])
    assert drafted == [token for one in plain for token in one.tokens]


@pytest.mark.parametrize(("bits", "most"), [(4, 0.3), (6, 0.03), (8, 0.003)])
def test_a_trained_model_stays_close_to_itself(bits: int, most: float, tmp_path: Path) -> None:
    source, dest = POCKET / "target", tmp_path / "made"
    prompt = Tokenizer.load(source).prompt_ids([{"role": "user", "content": "What is multi-token prediction?"}])
    agreed = convert(
        plan(POCKET, dest, make_recipe({"bits": bits}), drafter=False), compare=lambda a, b: compare(a, b, prompt)
    ).agreement
    assert agreed is not None
    assert agreed.kl < most
    record = json.loads((dest / "mlxmtp.json").read_text())
    assert record["compared"]["kl"] == agreed.kl
    assert record["recipe"]["bits"] == bits
    names = {item.name for item in dest.iterdir()}
    assert names >= {"tokenizer.json", "chat_template.jinja", "generation_config.json", "tokenizer_config.json"}
    text = {name: one for name, one in read_folder(dest).items() if "language_model" in name}
    stored = sum(one.layout.nbytes for one in text.values())  # towers are counted where they are read
    assert weight_bytes(read_config(dest), cpu=False) == pytest.approx(stored, rel=0.01)


def steps(plan: ConversionPlan) -> int:
    return sum(1 for _ in plan.steps())


def interrupt_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int) -> None:
    """Ctrl-C in the call with this number."""
    real, count = getattr(place, name), iter(range(call + 1))

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if next(count, call) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, stopped)


def seen(fresh: list[bool]) -> Watch:
    """Notes of every step whether it was done just now."""
    return Watch(lambda _, new: fresh.append(new))


def test_ctrl_c_before_every_step_and_the_result_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run gets one step further than the one before it, and none does a step again."""
    monkeypatch.setattr(tasks_module, "SLICE", 2048)
    whole, dest = tmp_path / "whole", tmp_path / "made"
    convert(plan(FOLDER / "31b", whole))
    total = steps(plan(FOLDER / "31b", dest))
    assert total > len(plan(FOLDER / "31b", dest).parts[0].tasks)
    for done in range(total):
        with monkeypatch.context() as patch:
            interrupt_at(patch, slices_module, "convert_slice", 1 if done else 0)
            fresh: list[bool] = []
            with pytest.raises(KeyboardInterrupt):
                convert(plan(FOLDER / "31b", dest), watch=seen(fresh))
            assert fresh == [False] * max(0, done - 1) + [True] * (done > 0)
        assert models(dest) == [whole]
    convert(plan(FOLDER / "31b", dest))
    assert folder_files(dest) == folder_files(whole)
    assert not dest.with_name("made.partial").exists()


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        (slices_module, "check_values", 0),
        (slices_module, "check_values", 40),
        (carrying_out, "_write_json", 0),
        (carrying_out, "_write_json", 1),
        (carrying_out, "output_config", 0),
        (carrying_out, "sync", 0),
        (carrying_out, "sync", 2),
        (shutil, "copyfile", 0),
        (os, "fsync", 0),
    ],
)
def test_ctrl_c_after_the_last_step(
    place: Any, name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, dest = tmp_path / "whole", tmp_path / "made"
    convert(plan(FOLDER / "e2b", whole))
    with monkeypatch.context() as patch:
        interrupt_at(patch, place, name, call)
        with pytest.raises(KeyboardInterrupt):
            convert(plan(FOLDER / "e2b", dest))
    assert models(dest) == [whole]
    with pytest.raises(MlxmtpError):
        mlxmtp.load(dest.with_name("made.partial"))
    convert(plan(FOLDER / "e2b", dest))
    assert folder_files(dest) == folder_files(whole)


def test_ctrl_c_while_comparing(tmp_path: Path) -> None:
    dest = tmp_path / "made"

    def stop(source: Path, result: Path) -> Agreement:
        assert mlxmtp.load(result).drafter
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(plan(FOLDER / "e2b", dest), compare=stop)
    assert models(dest) == []
    assert convert(plan(FOLDER / "e2b", dest), compare=lambda a, b: compare(a, b, IDS)).agreement is not None


SLOWED = """
import itertools, sys, time
from mlxmtp.convert import tasks as tasks_module
from mlxmtp.convert import slices as slices_module
real, tasks_module.SLICE = slices_module.convert_slice, 4096
steps = itertools.count()
def slowly(step):
    if next(steps) == 70:
        time.sleep(600)  # until it is ended
    return real(step)
slices_module.convert_slice = slowly
from mlxmtp.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A conversion of the 26b golden to tmp_path/made that goes no further than 70 steps."""
    env = {**os.environ, "HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    source = FOLDER / "26b"
    flags = ["--draft-model", str(source / "drafter"), "--no-compare"]
    command = [sys.executable, "-c", SLOWED, "convert", str(source / "target"), str(tmp_path / "made"), *flags]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        yield running
        running.kill()


def wait_for_steps(work: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journal = work / "journal"
        if journal.exists() and journal.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.01)
    raise AssertionError("the conversion does not get on")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_process_that_was_ended_is_continued(
    how: signal.Signals, process: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, dest = tmp_path / "whole", tmp_path / "made"
    wait_for_steps(tmp_path / "made.partial", 60)
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert ("The same command goes on from here" in err) == (how == signal.SIGINT)
    assert models(dest) == []
    monkeypatch.setattr(tasks_module, "SLICE", 4096)
    fresh: list[bool] = []
    convert(
        plan_conversion(FOLDER / "26b" / "target", FOLDER / "26b" / "drafter", dest, make_recipe({}), origin="target"),
        watch=seen(fresh),
    )
    assert fresh.count(False) >= 60
    assert fresh == sorted(fresh)
    convert(
        plan_conversion(FOLDER / "26b" / "target", FOLDER / "26b" / "drafter", whole, make_recipe({}), origin="target")
    )
    ours, theirs = folder_files(dest), folder_files(whole)
    assert {name: ours[name] == theirs[name] for name in ours} == dict.fromkeys(theirs, True)


def test_two_processes_do_not_write_one_result(process: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for_steps(tmp_path / "made.partial", 1)
    with pytest.raises(ConversionError, match="Another process is converting into"):
        convert(plan(FOLDER / "26b", tmp_path / "made"))


def half_done(dest: Path, monkeypatch: pytest.MonkeyPatch, count: int = 30) -> Path:
    with monkeypatch.context() as patch:
        interrupt_at(patch, slices_module, "convert_slice", count)
        with pytest.raises(KeyboardInterrupt):
            convert(plan(FOLDER / "e2b", dest))
    return dest.with_name(f"{dest.name}.partial")


def test_what_the_disk_lost_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut lines of the journal may be there whose bytes are not."""
    whole, dest = tmp_path / "whole", tmp_path / "made"
    convert(plan(FOLDER / "e2b", whole))
    file = half_done(dest, monkeypatch) / "model" / "model.safetensors"
    places = [start for _, found in plan(FOLDER / "e2b", dest).steps() for _, start in found[:1]]
    with file.open("r+b") as stream:
        stream.seek(places[20])
        stream.write(b"\0" * 16)
    fresh: list[bool] = []
    convert(plan(FOLDER / "e2b", dest), watch=seen(fresh))
    assert fresh.index(True) == 20
    assert folder_files(dest) == folder_files(whole)


def test_another_recipe_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest, whole = tmp_path / "made", tmp_path / "whole"
    half_done(dest, monkeypatch)
    done = convert(plan(FOLDER / "e2b", dest, make_recipe({"bits": 8})))
    assert done.started_over
    assert not convert(plan(FOLDER / "e2b", whole, make_recipe({"bits": 8}))).started_over
    assert folder_files(dest) == folder_files(whole)


def test_a_changed_source_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dest = tmp_path / "source", tmp_path / "made"
    shutil.copytree(FOLDER / "e2b", source)
    with monkeypatch.context() as patch:
        interrupt_at(patch, slices_module, "convert_slice", 30)
        with pytest.raises(KeyboardInterrupt):
            convert(plan(source, dest))
    os.utime(source / "target" / "model.safetensors", (1, 1))
    assert convert(plan(source, dest)).started_over


def test_a_journal_cut_off_in_the_middle_of_a_line(tmp_path: Path) -> None:
    with StepJournal.open(tmp_path / "journal", "f" * 64) as journal:
        for checksum in (1, 2, 0xFFFFFFFF):
            journal.add(checksum)
    whole = (tmp_path / "journal").read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / "journal").write_bytes(whole[:length])
        with StepJournal.open(tmp_path / "journal", "f" * 64) as journal:
            assert journal.checksums == [1, 2, 0xFFFFFFFF][: max(0, (length - 65) // 9)]
            journal.add(7)
            kept = [*journal.checksums]
        with StepJournal.open(tmp_path / "journal", "f" * 64) as journal:
            assert journal.checksums == kept
            assert journal.stale is False


def test_bytes_that_change_on_the_disk_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "made"
    real = carrying_out._fill

    def filled(*args: Any) -> None:
        real(*args)
        with (dest.with_name("made.partial") / "model" / "model.safetensors").open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            last = stream.read(1)
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last[0] ^ 1]))

    monkeypatch.setattr(carrying_out, "_fill", filled)
    with pytest.raises(ConversionError, match=r"The disk gives back other bytes of .* than were written"):
        convert(plan(FOLDER / "e2b", dest))
    assert models(dest) == []


def test_many_files_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.convert.plan.SHARD", 40_000)
    golden, dest = load_golden("31b"), tmp_path / "made"
    convert(plan(FOLDER / "31b", dest, make_recipe({"bits": 16})))
    files = sorted(item.name for item in dest.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((dest / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(one.layout.nbytes for one in read_folder(dest).values())
    record = golden.records["short"]
    assert answer(dest, record.prompt, len(record.greedy))[0] == record.greedy


def test_towers_stay_unless_only_text_is_wanted(tmp_path: Path) -> None:
    for text_only in (False, True):
        dest = tmp_path / str(text_only)
        convert(plan(FOLDER / "e2b", dest, make_recipe({"text_only": text_only})))
        towers = {name: one for name, one in read_folder(dest).items() if not name.startswith("language_model.")}
        assert bool(towers) != text_only
        assert {one.layout.dtype for one in towers.values()} <= {"BF16"}
        assert mlxmtp.load(dest).drafter


def test_text_weights_alone_become_the_text_part_of_the_whole(tmp_path: Path) -> None:
    """Published as `gemma4_text`, with names that begin at `model.layers`."""
    import mlx.core as mx

    golden, source = load_golden("e4b"), tmp_path / "source"
    source.mkdir()
    raw = json.loads((golden.target / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw["text_config"], "model_type": "gemma4_text"}))
    weights = mx.load(str(golden.target / "model.safetensors"))
    assert isinstance(weights, dict)
    text = {n.replace("language_model.", ""): v for n, v in weights.items() if ".language_model." in n}
    mx.save_safetensors(str(source / "model.safetensors"), text)
    dest = tmp_path / "made"
    convert(plan_conversion(source, golden.drafter, dest, make_recipe({"bits": 16}), origin="test"))
    assert json.loads((dest / "config.json").read_text())["model_type"] == "gemma4"
    record = golden.records["short"]
    assert answer(dest, record.prompt, len(record.greedy))[0] == record.greedy


# Runs in a process of its own: importing mlx-lm brings transformers with it.
STOCK = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model
for folder in sys.argv[2:]:
    model, _ = load_model(Path(folder))
    print(json.dumps(model(mx.array([json.loads(sys.argv[1])]))[0].astype(mx.float32).tolist()))
"""


@pytest.mark.slow
def test_stock_mlx_lm_loads_every_family_and_computes_the_same(tmp_path: Path) -> None:
    """It reads per-module bits, modes and what is not packed from config.json, as we do."""
    import mlx.core as mx

    from mlxmtp.convert.compare import text_logits

    recipes: list[dict[str, Any]] = [
        {"bits": 4, "draft_bits": 4},
        {"mode": "mxfp4"},
        {"mode": "nvfp4"},
        {"bits": 6, "group_size": 32},
    ]
    made = []
    for family in FAMILIES:
        for at, flags in enumerate(recipes):
            made.append(tmp_path / f"{family}-{at}")
            # Stock experts on a CPU want float32.
            convert(plan(FOLDER / family, made[-1], make_recipe({"dtype": "float32", **flags})))
    command = [sys.executable, "-c", STOCK, json.dumps(IDS), *map(str, made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, line in zip(made, done.stdout.splitlines(), strict=True):
        ours, theirs = text_logits(folder, IDS, drafter=folder / "drafter"), mx.array(json.loads(line))
        assert float(mx.abs(ours - theirs).max()) < 1e-3 * float(mx.abs(theirs).max()), folder.name


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--q-bits", "16"], ["--q-mode", "mxfp8"]], ids=str)
def test_memory_depends_on_the_slice_and_not_on_the_tensor(flags: list[str], tmp_path: Path) -> None:
    """The per-layer table is 671 MB of zeros, which take no disk; the process stays far below that."""
    source = tmp_path / "source"
    source.mkdir()
    raw = json.loads((FOLDER / "e2b" / "target" / "config.json").read_text())
    more = {"vocab_size": 262144, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 128}
    (source / "config.json").write_text(
        json.dumps({**raw, "vocab_size": 262144, "text_config": raw["text_config"] | more})
    )
    layouts = [Layout(one.name, "BF16", one.shape) for one in tensors(read_config(source))]
    header, places = lay_out(source / "model.safetensors", layouts, {})
    assert max(layout.nbytes for layout in layouts) == 671_088_640
    with (source / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(places[-1].start + places[-1].layout.nbytes)
    command = [sys.executable, "-m", "mlxmtp", "convert", str(source), str(tmp_path / "made"), "--no-compare", *flags]
    env = {**os.environ, "HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    # Spawned by a process of its own, since the memory of the one that spawns counts, too.
    watcher = (
        "import os, sys; process = os.posix_spawn(sys.executable, sys.argv[1:], os.environ); "
        "_, status, usage = os.wait4(process, 0); print(status, usage.ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", watcher, *command], env=env, capture_output=True, text=True, check=True
    )
    status, peak = map(int, done.stdout.split()[-2:])
    assert status == 0, done.stderr
    shutil.rmtree(tmp_path / "made")  # half a gigabyte
    assert peak * (1 if sys.platform == "darwin" else 1024) < 400_000_000


def copy(family: str, folder: Path) -> Path:
    shutil.copytree(FOLDER / family, folder)
    return folder


def broken(source: Path, how: str) -> None:
    target = source / "target"
    weights = target / "model.safetensors"
    config = json.loads((target / "config.json").read_text())
    if how == "quantized":
        convert(plan(source, source / "packed"))
        shutil.rmtree(target)
        (source / "packed").rename(target)
    elif how == "quantized elsewhere":
        config["quantization_config"] = {"quant_method": "gptq"}
        weights.write_bytes(
            weights.read_bytes().replace(b"layers.3.mlp.up_proj.weight", b"layers.3.mlp.up_proj.qweigh", 1)
        )
    elif how == "another model":
        config["model_type"] = "llama"
    elif how == "drafter":
        shutil.rmtree(target)
        shutil.copytree(source / "drafter", target)
    elif how == "wrong pair":
        shutil.rmtree(source / "drafter")
        shutil.copytree(FOLDER / "26b" / "drafter", source / "drafter")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "damaged header":
        weights.write_bytes(weights.read_bytes().replace(b'"dtype":"BF16"', b'"dtype":"XF16"', 1))
    elif how == "lacking":
        text = weights.read_bytes()
        weights.write_bytes(text.replace(b"layers.3.mlp.up_proj", b"layers.3.mlp.up_prox", 1))
    elif how == "no weights":
        weights.unlink()
    if how in ("quantized elsewhere", "another model"):
        (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("quantized", "is already quantized and cannot be converted again. Convert the 16-bit weights it was made of."),
        ("quantized elsewhere", "holds weights quantized by gptq, which MLX does not read"),
        ("another model", "holds a 'llama' model; mlxmtp runs Gemma 4"),
        ("drafter", "is a drafter. Give its target as SRC and this as --draft-model."),
        ("wrong pair", "does not fit this target: key/value heads of"),
        ("truncated", "bytes and should have"),
        ("damaged header", "is stored as XF16"),
        ("lacking", "lacks tensor"),
        ("no weights", "holds no model.safetensors"),
    ],
)
def test_sources_that_cannot_be_converted(how: str, said: str, tmp_path: Path) -> None:
    source = copy("e2b", tmp_path / "source")
    broken(source, how)
    with pytest.raises(LoadError) as raised:
        plan(source, tmp_path / "made")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made.partial").exists()


def test_a_drafter_that_was_only_found_is_left_out_where_it_does_not_fit(tmp_path: Path) -> None:
    source = FOLDER / "e2b" / "target"
    made = plan_conversion(
        source, FOLDER / "26b" / "drafter", tmp_path / "made", make_recipe({}), origin="x", drafter_named=False
    )
    assert len(made.parts) == 1
    assert "does not fit this target" in made.notes[0]


def test_destinations_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    for force in (False, True):
        with pytest.raises(UsageError, match="taken exists and is not a model, so --force does not replace it"):
            plan(FOLDER / "e2b", taken).check(force=force)
    (taken / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"taken exists\. Give another DEST, or replace it with --force"):
        plan(FOLDER / "e2b", taken).check()
    source = copy("e2b", tmp_path / "source")
    with pytest.raises(UsageError, match="is the source itself"):
        plan(source, source / "target").check(force=True)
    shutil.copy(source / "target" / "config.json", source)  # --force would replace the folder with all that is in it
    with pytest.raises(UsageError, match="is the source itself, or holds it"):
        plan(source, source).check(force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match=r"cannot be written: Not a directory. Give mlxmtp convert a DEST that"):
        convert(plan(FOLDER / "e2b", tmp_path / "file" / "made"))
    monkeypatch.setattr("mlxmtp.convert.plan.free_bytes", lambda _: 1000)
    with pytest.raises(ConversionError, match=r"needs \d+ kB on disk; 1 kB are free .* Make room"):
        plan(FOLDER / "e2b", tmp_path / "made").check()


def test_a_source_is_known_under_another_case_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that does not tell them apart, as most Macs': here they are two folders, and said to be one."""
    source = copy("e2b", tmp_path / "Gemma")
    for folder in (tmp_path / "gemma", tmp_path / "gemma" / "target"):
        folder.mkdir()
        shutil.copy(source / "target" / "config.json", folder)
    monkeypatch.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
    for dest in (tmp_path / "gemma" / "target", tmp_path / "gemma"):
        with pytest.raises(UsageError, match="is the source itself, or holds it"):
            plan(source, dest).check(force=True)


def test_what_is_half_done_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "made"
    assert plan(FOLDER / "e2b", dest).missing == plan(FOLDER / "e2b", dest).size
    half_done(dest, monkeypatch)
    assert plan(FOLDER / "e2b", dest).missing < plan(FOLDER / "e2b", dest).size


def test_force_replaces_a_model_and_only_when_the_new_one_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "made"
    convert(plan(FOLDER / "e2b", dest))
    before = folder_files(dest)
    eight = plan(FOLDER / "e2b", dest, make_recipe({"bits": 8}))
    with monkeypatch.context() as patch:
        interrupt_at(patch, carrying_out, "output_config", 0)
        with pytest.raises(KeyboardInterrupt):
            convert(eight)
    assert folder_files(dest) == before
    convert(eight)
    assert json.loads((dest / "config.json").read_text())["quantization"]["bits"] == 8
    assert [item.name for item in tmp_path.iterdir()] == ["made"]


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, dest = tmp_path / "whole", tmp_path / "made"
    convert(plan(FOLDER / "31b", whole))
    real, calls = os.pwrite, iter(range(10**6))

    def full(descriptor: int, data: bytes, place: int) -> int:
        """The disk takes half of a write, then nothing more."""
        call = next(calls)
        if call > 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[: len(data) // 2] if call == 50 else data, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ConversionError, match=r"The disk is full .* run the same command again to go on"):
            convert(plan(FOLDER / "31b", dest))
    assert models(dest) == [whole]
    fresh: list[bool] = []
    convert(plan(FOLDER / "31b", dest), watch=seen(fresh))
    assert fresh.count(False) > 10
    assert folder_files(dest) == folder_files(whole)


@pytest.mark.parametrize("family", ["e2b", "26b"])
def test_float16_is_refused_where_values_overflow_on_a_gpu(family: str, tmp_path: Path) -> None:
    """A CPU computes in float32 and would find nothing; norms make what is read from such values small again."""
    source, dest = tmp_path / "source", tmp_path / "made"
    shutil.copytree(FOLDER / family, source)
    for file in (source / "target").glob("*.safetensors"):
        weights: Any = mx.load(str(file))
        large = [name for name in weights if name.endswith("layers.1.post_feedforward_layernorm.weight")]
        if large:
            mx.eval(weights)
            mx.save_safetensors(str(file), weights | {name: weights[name] * 30000 for name in large})
    half = make_recipe({"bits": 16, "dtype": "float16"})
    with pytest.raises(LoadError, match="overflow on a GPU: take --dtype bfloat16"):
        convert(plan(source, dest, half, drafter=False), compare=lambda a, b: compare(a, b, IDS))
    wide = convert(plan(source, tmp_path / "wide", make_recipe({"bits": 16}), drafter=False))
    assert compare(source / "target", wide.folder, IDS).top1 == 1.0
    whole = convert(plan(FOLDER / family, tmp_path / "half", half, drafter=False))
    assert compare(FOLDER / family / "target", whole.folder, IDS).top1 > 0.9
