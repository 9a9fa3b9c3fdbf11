"""`mlxmtp convert` and `pull --convert`: names, what is fetched and said, and what `ls`, `show` and `rm` make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mlxmtp
from mlxmtp.app.conversion import Conversion, ConversionRequest, find_source
from mlxmtp.app.models import Catalog, NoDownload
from mlxmtp.convert import slices as slices_module
from mlxmtp.convert.recipe import make_recipe
from mlxmtp.decode.compile import Rounds
from mlxmtp.errors import DeviceFailed, LoadError
from mlxmtp.hub.inventory import default
from mlxmtp.hub.registry import entries
from mlxmtp.machine.chip import this_machine
from mlxmtp.models import device
from mlxmtp.models.config import read_config
from tests.golden import FAMILIES, FOLDER, load_golden
from tests.hub.conftest import Here
from tests.hub.hub_server import folder_files
from tests.hub.models_to_publish import publish_family, target_files
from tests.hub.test_convert import interrupt_at

GOOGLE = "google/gemma-4-E2B-it"
QAT = "google/gemma-4-E2B-it-qat-q4_0-unquantized"


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounds, "build", lambda *_: None)


def made(here: Here, name: str) -> Path:
    return here.settings().places.data / "models" / name


def served(here: Here, name: str) -> int:
    return sum(item.sent for item in here.hub.served if name in item.path)


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pulled_converted_and_answers(here: Here, family: str) -> None:
    repo = publish_family(here.hub, family)
    code, out, err = here.call("pull", repo, "--convert")
    assert (code, out) == (0, f'{family}-4bit is ready. Ask it something: mlxmtp ask -m {family}-4bit "Hello"\n'), err
    for word in ("4 bit, groups of 32: ", "checked  every tensor is there", "compared on 97 tokens: mean KL "):
        assert word in err
    model = mlxmtp.load(f"{family}-4bit")
    assert model.drafter == str(made(here, f"{family}-4bit") / "drafter")
    prompt = load_golden(family).records["short"].prompt
    assert len([t for one in model.rounds(prompt, max_tokens=8, stop=[]) for t in one.tokens]) == 8
    code, out, err = here.call("convert", repo, "--q-bits", "16", "-q")
    assert (code, err) == (0, "")
    record = load_golden(family).records["short"]
    rounds = mlxmtp.load(f"{family}-bf16").rounds(record.prompt, max_tokens=len(record.greedy), stop=[])
    assert [token for one in rounds for token in one.tokens] == record.greedy


def test_an_alias_is_googles_own_weights_and_then_means_the_result(here: Here) -> None:
    publish_family(here.hub, "e2b", GOOGLE)
    code, out, err = here.call("pull", "e2b", "--convert")
    assert (code, out) == (0, 'e2b is ready. Ask it something: mlxmtp ask -m e2b "Hello"\n'), err
    assert "e2b:qat are weights that were trained to be quantized to 4 bits" in err
    assert f"stay in the cache; mlxmtp rm {GOOGLE} frees them" in err
    folder = made(here, "e2b-4bit")
    assert here.store().resolve("e2b").folder == here.store().resolve("e2b:4bit").folder == folder
    for usable in (0, 10**12):
        chosen = default(here.store(), usable)
        assert chosen is not None
        assert (chosen.name, chosen.folder) == ("e2b", folder)
    names = here.call("ls", "-q")[1].splitlines()
    assert names == ["pocket", "e2b:bf16", "e2b"]
    assert not {"e2b", "e2b:4bit"} & {row["name"] for row in listed(here) if not row["installed"]}
    assert here.store().resolve("e2b:bf16").folder != folder
    sheet = json.loads(here.call("show", "e2b", "--json")[1])
    assert {row["kind"]: row["storage"] for row in sheet["modules"]}["per-layer embedding"] == "8 bit, groups of 32"
    assert sheet["conversion"]["target"]["source"] == GOOGLE
    assert f"Converted here from {GOOGLE}; on 97 tokens mean KL " in here.call("show", "e2b")[1]
    code, out, err = here.call("rm", "-y", "e2b")
    assert code == 0
    assert "e2b-4bit" in err
    assert not folder.exists()
    assert here.call("show", "e2b")[0] == 3


def test_names_and_json_are_two_lists(here: Here) -> None:
    code, out, err = here.call("ls", "-q", "--json")
    assert (code, out) == (2, "")
    assert "take one" in err


def listed(here: Here) -> list[dict]:
    return list(json.loads(here.call("ls", "--all", "--json")[1])["models"])


def test_a_conversion_shadows_the_hubs_own_of_the_same_name(here: Here) -> None:
    publish_family(here.hub, "e2b", GOOGLE)
    publish_family(here.hub, "e2b", "mlx-community/gemma-4-e2b-it-4bit")
    here.hub.publish("mlx-community/gemma-4-E2B-it-assistant-bf16", FOLDER / "e2b" / "drafter")
    assert here.call("pull", "e2b")[0] == 0
    pulled = here.store().resolve("e2b").folder
    assert here.call("pull", "e2b", "--convert")[0] == 0
    assert here.store().resolve("e2b").folder == made(here, "e2b-4bit")
    assert here.store().resolve("mlx-community/gemma-4-e2b-it-4bit").folder == pulled
    names = here.call("ls", "-q")[1].splitlines()
    assert sorted(names) == ["e2b", "e2b:bf16", "mlx-community/gemma-4-e2b-it-4bit", "pocket"]
    code, out, err = here.call("pull", "e2b")
    assert (code, out) == (2, "")
    assert "e2b is the model that was converted here" in err
    assert "mlxmtp convert e2b --force, or remove it with mlxmtp rm e2b" in err
    code, _, err = here.call("pull", "e2b", "--convert")
    assert (code, err) == (
        2,
        f"Error: {made(here, 'e2b-4bit')} exists. Make it again with: mlxmtp convert e2b --force\n",
    )
    assert here.call("rm", "-y", "e2b")[0] == 0
    assert here.store().resolve("e2b").folder == pulled


def test_a_damaged_conversion_is_to_be_converted_again(here: Here) -> None:
    publish_family(here.hub, "e2b", GOOGLE)
    assert here.call("convert", "e2b", "--no-compare")[0] == 0
    weights = made(here, "e2b-4bit") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    again = f"It was converted here from {GOOGLE}: convert that again, with --force.\n"
    code, _, err = here.call("show", "e2b")
    assert (code, err.endswith(again)) == (1, True), err
    with pytest.raises(LoadError, match="convert that again, with --force"):
        mlxmtp.load("e2b")
    (made(here, "e2b-4bit") / "config.json").write_text("{")
    code, _, err = here.call("ask", "-m", "e2b", "--no-stdin", "Hi")
    assert (code, err.endswith(again)) == (1, True), err


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("model.safetensors", ("bench", "-m", "e2b", "-n", "2", "--suite", "chat", "--num-draft-tokens", "0")),
        ("tokenizer.json", ("doctor",)),
        ("drafter/config.json", ("show", "e2b")),
        ("drafter/model.safetensors", ("show", "e2b")),
    ],
)
def test_every_command_says_what_to_convert_again(here: Here, file: str, command: tuple[str, ...]) -> None:
    publish_family(here.hub, "e2b", GOOGLE)
    assert here.call("convert", "e2b", "--no-compare")[0] == 0
    (made(here, "e2b-4bit") / file).write_text("{")
    _, out, err = here.call(*command)
    assert f"It was converted here from {GOOGLE}: convert that again, with --force." in " ".join((out + err).split())
    assert "Download the model again" not in out + err


def test_what_this_gpu_cannot_load_is_refused_before_it_is_written(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_family(here.hub, "e2b", GOOGLE)
    monkeypatch.setattr(device, "largest_buffer", lambda: 1000)
    code, _, err = here.call("convert", "e2b")
    assert code == 1
    assert "in one piece, and this GPU takes 1 kB: choose fewer --q-bits, or --no-compare to use it elsewhere." in err
    assert not list(made(here, "").glob("e2b-4bit*"))
    assert here.call("convert", "e2b", "--no-compare")[0] == 0


def test_pull_converts_the_hubs_repository_beside_a_folder_of_its_name(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here.folder)
    (here.folder / "org" / "e2b").mkdir(parents=True)
    publish_family(here.hub, "e2b")
    code, _, err = here.call("pull", "org/e2b", "--convert")
    assert code == 0, err
    assert json.loads(here.call("show", "e2b-4bit", "--json")[1])["conversion"]["target"]["source"] == "org/e2b"


def test_a_conversion_without_a_short_name_answers_before_its_source_does(here: Here) -> None:
    publish_family(here.hub, "e2b", GOOGLE)
    assert here.call("convert", "e2b", "--q-bits", "6", "--no-compare")[0] == 0
    chosen = default(here.store(), 10**12)
    assert chosen is not None
    assert (chosen.name, chosen.folder) == ("e2b-6bit", made(here, "e2b-6bit"))


def test_the_disk_must_hold_the_result_as_well(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = publish_family(here.hub, "e2b")
    catalog = Catalog(here.settings())
    download = catalog.plan_download(repo, to_convert=True)
    assert not isinstance(download, NoDownload)
    monkeypatch.setattr("mlxmtp.app.conversion.free_bytes", lambda _: download.missing + 20_000)
    code, _, err = here.call("pull", repo, "--convert")
    assert (code, "result" in err) == (1, False)
    assert f"Error: With its conversion {repo} needs " in err
    assert "Make room (`mlxmtp rm`), or give mlxmtp convert a DEST on another disk." in err
    assert served(here, "/cdn/") == 0


@pytest.mark.parametrize("flags", [{}, {"bits": 16}, {"mode": "mxfp4"}, {"text_only": True}], ids=str)
def test_the_size_of_a_result_is_known_before_the_download(here: Here, flags: dict) -> None:
    repo = publish_family(here.hub, "e2b")
    catalog = Catalog(here.settings())
    conversion, download = Conversion(catalog, ConversionRequest(repo, recipe=flags)), catalog.plan_download(repo)
    assert not isinstance(download, NoDownload)
    about = float(conversion.room(download).split()[1])
    catalog.download(download, on_bytes=lambda *_: None)
    assert about * 1000 == pytest.approx(conversion.plan().size, rel=0.2)  # of so small files headers are much


def test_a_search_for_a_drafter_that_found_none_is_not_repeated(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    del here.hub.repos[f"{repo}-assistant"]
    assert here.call("convert", repo, "--no-compare")[0] == 0
    requests = len(here.hub.served)
    assert here.call("convert", repo, "--q-bits", "8", "--no-compare")[0] == 0
    assert len(here.hub.served) == requests


@pytest.mark.parametrize("loading", [False, True])
def test_a_comparison_for_which_the_device_fails_is_left_out(
    here: Here, monkeypatch: pytest.MonkeyPatch, loading: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        full = RuntimeError("[metal::malloc] Attempting to allocate 9 bytes")
        if loading:
            raise DeviceFailed("MLX failed on this GPU. Use less context.") from full
        raise full

    monkeypatch.setattr("mlxmtp.convert.compare.text_logits", fail)
    out = here.folder / "out"
    code, _, err = here.call("convert", str(FOLDER / "e2b" / "target"), str(out))
    assert code == 0, err
    assert "Not compared with its source: MLX could not compute that here ([metal::malloc] Attempting to all" in err
    assert "less context" not in err
    assert json.loads((out / "mlxmtp.json").read_text())["compared"] is None


def test_weights_trained_for_4_bits(here: Here) -> None:
    publish_family(here.hub, "e2b", QAT)
    code, out, err = here.call("convert", "e2b:qat")
    assert (code, out.split()[0]) == (0, "e2b:qat"), err
    assert "trained to be packed" not in err
    block = read_config(made(here, "e2b-qat")).quantization
    assert block is not None
    assert (block["bits"], block["group_size"]) == (4, 32)
    assert here.store().resolve("e2b:qat").folder == made(here, "e2b-qat")


def test_what_is_here_is_not_fetched_again_and_the_drafter_is(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo, "--no-draft")[0] == 0
    before = served(here, f"{repo}/") + served(here, "/cdn/org/e2b/")
    assert here.call("convert", repo)[0] == 0
    assert (made(here, "e2b-4bit") / "drafter" / "config.json").exists()
    requests = len(here.hub.served)
    out = here.folder / "my out"
    code, said, _ = here.call("convert", repo, str(out), "--q-bits", "8", "--no-compare")
    assert (code, f"mlxmtp ask -m '{out}' \"Hello\"\n" in said) == (0, True), said
    assert len(here.hub.served) == requests
    assert before > 0


def test_without_a_drafter(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    code, _, err = here.call("pull", repo, "--convert", "--no-draft")
    assert (code, "No drafter" in err) == (0, False)
    assert not (made(here, "e2b-4bit") / "drafter").exists()
    alone = here.folder / "alone"
    alone.mkdir()
    for name, content in folder_files(FOLDER / "12b" / "target").items():
        (alone / name).write_bytes(content)
    code, _, err = here.call("convert", str(alone), str(here.folder / "out"))
    assert code == 0
    assert "No drafter was found, so the result will decode without one. --draft-model names it." in err


def test_folders_and_a_drafter_by_name(here: Here) -> None:
    target, drafter = FOLDER / "12b" / "target", FOLDER / "12b" / "drafter"
    out = here.folder / "out"
    code, said, err = here.call("convert", str(target), str(out), "--draft-model", str(drafter), "--draft-bits", "8")
    assert (code, said.startswith(f"{out} is here. {out} has no tokenizer.json")) == (0, True), err
    block = read_config(out / "drafter").quantization
    assert block is not None
    assert block["bits"] == 8
    assert mlxmtp.load(out).drafter == str(out / "drafter")
    code, _, err = here.call(
        "convert", str(target), str(here.folder / "b"), "--draft-model", str(FOLDER / "31b/drafter")
    )
    assert code == 1
    assert "does not fit this target" in err
    assert here.call("convert", str(target), "--draft-model", "org/none")[0] == 3


def test_a_model_is_replaced_from_inside_its_folder(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here.folder / "made"
    assert here.call("convert", str(FOLDER / "e2b" / "target"), str(folder), "--no-compare")[0] == 0
    monkeypatch.chdir(folder)
    code, _, err = here.call("convert", str(FOLDER / "e2b" / "target"), ".", "--force", "--no-compare")
    assert code == 0, err
    monkeypatch.chdir(here.folder)
    assert read_config(folder).folder == folder


def test_refusals_come_before_anything_is_downloaded(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = publish_family(here.hub, "e2b")
    folder = here.folder / "taken"
    (folder / "inside").mkdir(parents=True)
    monkeypatch.chdir(folder / "inside")
    other = here.folder / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    for arguments, code, said in (
        (
            ("convert", repo, str(other)),
            2,
            f"Error: {other} exists. Give another DEST, or replace it with --force.\n",
        ),
        *(
            (("convert", repo, dest, "--force"), 2, f"Error: {there} exists and is not a model, so --force does not")
            for dest, there in ((str(folder), folder), (".", folder / "inside"), ("..", folder), ("/", "/"))
        ),
        (("convert", repo, "--q-bits", "3"), 2, "Error: --q-bits must be 4, 5, 6, 8 or 16, not 3.\n"),
        (("convert", repo, "--q-mode", "mxfp4", "--q-bits", "6"), 2, "Error: mxfp4 has 4 bits and groups of 32"),
        (("convert", "e2c"), 3, "Error: Model 'e2c' is not known (did you mean 'e2b'?)"),
        (("convert", str(here.folder / "none")), 3, "Error: There is no folder"),
        (
            ("pull", "mlx-community/gemma-4-e2b-it-4bit", "--convert"),
            1,
            "For Google's own weights: mlxmtp convert e2b\n",
        ),
    ):
        got, out, err = here.call(*arguments)
        assert (got, out) == (code, ""), err
        assert said in err
        assert err.count("\n") == 1
    assert not here.hub.served


def test_packed_weights_on_the_hub_are_refused_before_they_are_downloaded(here: Here) -> None:
    files = target_files("e2b")
    config = {**json.loads(files["config.json"]), "quantization": {"bits": 4, "group_size": 64}}
    here.hub.publish("org/packed", {**files, "config.json": json.dumps(config).encode()})
    code, _, err = here.call("convert", "org/packed")
    assert code == 1
    assert err == (
        "Error: org/packed is already quantized and cannot be converted again. "
        "Convert the 16-bit weights it was made of.\n"
    )
    assert served(here, "model.safetensors") == 0


def test_an_interrupted_conversion_is_listed_and_can_be_removed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, slices_module, "convert_slice", 30)
        code, _, err = here.call("convert", repo)
    assert code == 130
    assert "The same command goes on from here" in err
    code, out, err = here.call("ls")
    assert "e2b-4bit" not in out
    assert "Unfinished: e2b-4bit.partial (" in err
    assert here.call("show", "e2b-4bit")[0] == 3
    assert here.call("show", "e2b-4bit.partial")[0] == 3
    assert here.call("rm", "-y", "e2b-4bit.partial")[0] == 0
    assert "Unfinished" not in here.call("ls")[2]


def test_what_does_not_fit_is_not_compared_and_said_so(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(this_machine(), usable=100_000)
    monkeypatch.setattr("mlxmtp.convert.compare.this_machine", lambda: small)
    target = FOLDER / "e2b" / "target"
    code, _, err = here.call("convert", str(target), str(here.folder / "out"))
    assert code == 0
    assert "Not compared with its source: that takes " in err
    assert "of memory, and 100 kB can be used here." in err
    code, _, err = here.call("convert", str(target), str(here.folder / "out"), "--force", "--no-compare")
    assert code == 0
    assert "ompared" not in err
    assert json.loads((here.folder / "out" / "mlxmtp.json").read_text())["target"]["source"] == "target"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_alias_has_16_bit_weights_of_googles(entry) -> None:
    assert entry.source_repo.startswith("google/gemma-4-")
    assert entry.source_repo.endswith("-it-qat-q4_0-unquantized" if entry.variant == "qat" else "-it")
    source = find_source(entry.name)
    assert source.repo == entry.source_repo
    recipe = make_recipe(source.recipe, qat=source.qat)
    assert source.result_name(recipe) == f"{entry.family}-{entry.variant}"


@pytest.mark.parametrize(
    ("name", "flags", "wanted"),
    [
        ("google/gemma-4-E2B-it", {}, "e2b-4bit"),
        ("google/gemma-4-31B-it-qat-q4_0-unquantized", {}, "31b-qat"),
        ("google/gemma-4-31B-it-qat-q4_0-unquantized", {"bits": 8}, "31b-8bit"),
        ("org/Tuned", {"mode": "nvfp4"}, "tuned-nvfp4"),
        ("e4b", {"bits": 16, "dtype": "float16"}, "e4b-f16"),
    ],
)
def test_names_of_results(name, flags, wanted) -> None:
    source = find_source(name)
    assert source.result_name(make_recipe(flags, qat=source.qat)) == wanted


def test_a_folder_that_only_has_the_name_of_an_alias_does_not_become_it(here: Here) -> None:
    folder = here.folder / "e2b"
    folder.mkdir()
    for name, content in folder_files(FOLDER / "e2b" / "target").items():
        (folder / name).write_bytes(content)
    assert here.call("convert", str(folder), "--no-compare")[0] == 0
    assert made(here, "e2b-4bit").is_dir()
    assert here.call("show", "e2b")[0] == 3
    assert here.store().resolve("e2b-4bit").folder == made(here, "e2b-4bit")


def test_packed_aliases_are_named_with_their_source() -> None:
    with pytest.raises(LoadError, match=r"already quantized.*mlxmtp convert 12b:8bit"):
        find_source("mlx-community/gemma-4-12B-it-8bit")
