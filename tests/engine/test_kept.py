"""Keys and values on disk: going on from them says what reading everything again says; anything wrong is refused."""

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.engine import kv_file
from mlxmtp.engine.model import Model
from mlxmtp.errors import CacheRefused, LoadError
from mlxmtp.limits import SLACK
from mlxmtp.models import load
from mlxmtp.models.kv_cache import KVCache
from tests.golden import FAMILIES, load_golden
from tests.networks import decode, tokens


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(load_golden("e2b").target, tmp_path / "model")
    return tmp_path / "model"


def said(model: Model, prompt: list[int], count: int = 20) -> list[int]:
    return tokens(model.rounds(prompt, max_tokens=count, num_draft_tokens=3, stop=()))


@pytest.mark.few(5)
@pytest.mark.parametrize("length", [7, 300])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_process_goes_on_as_if_it_had_read_the_text(family, length, tmp_path):
    golden = load_golden(family)
    prompt = (golden.records["long"].prompt * 8)[:length]
    first = Model.load(golden.target, golden.drafter)
    following = [*prompt, *said(first, prompt), 5, 6]
    size = first.save_cache(tmp_path / "kv.safetensors")
    assert size == (tmp_path / "kv.safetensors").stat().st_size
    second = Model.load(golden.target, golden.drafter)
    assert second.load_cache(tmp_path / "kv.safetensors") == length + 19
    assert said(second, following) == said(Model.load(golden.target), following)
    assert second._decoder.reused == length + 19
    assert [path.name for path in tmp_path.iterdir()] == ["kv.safetensors"]


def test_a_file_of_another_model_or_of_a_replaced_one_is_refused(copied, tmp_path):
    prompt = load_golden("e2b").records["short"].prompt
    model = Model.load(copied)
    said(model, prompt)
    model.save_cache(tmp_path / "kv.safetensors")
    with pytest.raises(CacheRefused, match="another model"):
        Model.load(load_golden("e4b").target).load_cache(tmp_path / "kv.safetensors")
    (weights,) = copied.glob("*.safetensors")
    weights.touch()
    with pytest.raises(CacheRefused, match="another model"):
        Model.load(copied).load_cache(tmp_path / "kv.safetensors")


def test_files_are_labelled_with_the_weights_in_memory_and_not_with_what_replaced_them(copied, tmp_path):
    path, prompt = tmp_path / "kv.safetensors", load_golden("e2b").records["short"].prompt
    model = Model.load(copied)
    label = model.cache_label()
    (weights,) = copied.glob("*.safetensors")
    weights.touch()
    said(model, prompt)
    model.save_cache(path)
    assert model.cache_label() == label != Model.load(copied).cache_label()
    with pytest.raises(CacheRefused, match="another model"):
        Model.load(copied).load_cache(path)
    shutil.rmtree(copied)
    assert model.load_cache(path) == len(prompt) + 19
    assert model.cache_label() == label


def test_a_model_that_is_replaced_while_it_is_read_is_not_opened(copied, monkeypatch):
    real = load.load_target

    def replaced(folder: Path, **how: Any) -> Any:
        target = real(folder, **how)
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        return target

    monkeypatch.setattr(load, "load_target", replaced)
    with pytest.raises(LoadError, match="replaced while it was read"):
        Model.load(copied)


@pytest.mark.parametrize(("name", "value"), [("version", lambda _: "0.1"), ("_FORMAT", "0")], ids=["mlx", "layout"])
def test_a_file_of_another_version_of_mlx_or_of_another_layout_is_refused(name, value, tmp_path, monkeypatch):
    golden = load_golden("e2b")
    prompt = golden.records["short"].prompt
    with monkeypatch.context() as before:
        before.setattr(kv_file, name, value)
        first = Model.load(golden.target)
    said(first, prompt)
    first.save_cache(tmp_path / "kv.safetensors")
    model = Model.load(golden.target)
    with pytest.raises(CacheRefused, match="read again"):
        model.load_cache(tmp_path / "kv.safetensors")
    assert said(model, prompt) == said(Model.load(golden.target), prompt)
    assert model._decoder.reused == 0


def test_what_is_kept_can_be_read_by_its_owner_only(tmp_path):
    golden = load_golden("e2b")
    model = Model.load(golden.target)
    said(model, golden.records["short"].prompt)
    mask = os.umask(0o022)
    try:
        model.save_cache(tmp_path / "kv.safetensors")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "kv.safetensors").stat().st_mode) == 0o600


@pytest.mark.parametrize("left", [0, 7, 100, 3000])
def test_a_damaged_file_is_refused_and_the_conversation_goes_on(copied, tmp_path, left):
    prompt = load_golden("e2b").records["long"].prompt
    model = Model.load(copied)
    said(model, prompt)
    path = tmp_path / "kv.safetensors"
    model.save_cache(path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CacheRefused, match="read again"):
        model.load_cache(path)
    assert said(model, prompt) == said(Model.load(copied), prompt)


def test_arrays_of_the_wrong_shape_are_refused(copied, tmp_path):
    model = Model.load(copied)
    prompt = load_golden("e2b").records["long"].prompt
    decode(model._decoder, prompt, 5, snapshot_at=[len(prompt)])
    path = tmp_path / "kv.safetensors"
    model.save_cache(path)
    loaded: Any = mx.load(str(path), return_metadata=True)
    arrays, label = loaded
    for name, broken in [
        ("layer.0", arrays["layer.0"][:, :, :, :2]),
        ("tokens", arrays["tokens"][:3]),
        ("ring.0", arrays["ring.0"][:, :1]),
    ]:
        wrong = arrays | {name: broken}
        mx.save_safetensors(str(path), wrong, label | {"sum": kv_file._sum(wrong)})
        with pytest.raises(CacheRefused, match="does not fit"):
            model.load_cache(path)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.999])
def test_keys_and_values_of_which_a_byte_has_changed_are_refused(copied, tmp_path, share):
    prompt = load_golden("e2b").records["long"].prompt
    model = Model.load(copied)
    said(model, prompt)
    path = tmp_path / "kv.safetensors"
    model.save_cache(path)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 0x40
    path.write_bytes(data)
    other = Model.load(copied)
    with pytest.raises(CacheRefused, match=r"damaged|holds no keys|another"):
        other.load_cache(path)
    assert other._decoder.reused == 0


def test_what_is_kept_can_be_gone_back_to_its_last_mark(tmp_path):
    """After a thought the next prompt repeats the last one and not the answer, which has moved the rings on."""
    golden = load_golden("e2b")
    prompt = golden.records["long"].prompt
    first = Model.load(golden.target)
    decode(first._decoder, prompt, 2 * SLACK + 40, snapshot_at=[len(prompt)])
    first.save_cache(tmp_path / "kv.safetensors")
    following = [*prompt, 5, 6, 7]
    second = Model.load(golden.target)
    second.load_cache(tmp_path / "kv.safetensors")
    assert said(second, following) == said(Model.load(golden.target), following)
    assert second._decoder.reused == len(prompt)
    second.load_cache(tmp_path / "kv.safetensors")
    again = said(second, prompt)  # the last question once more: its hidden state was kept, too
    assert (again, second._decoder.reused) == (said(Model.load(golden.target), prompt), len(prompt))


def test_rounds_of_a_text_that_was_replaced_do_not_go_on(tmp_path):
    golden = load_golden("e2b")
    model = Model.load(golden.target)
    prompt = golden.records["short"].prompt
    said(model, prompt)
    model.save_cache(tmp_path / "kv.safetensors")
    rounds = model.rounds(golden.records["long"].prompt, max_tokens=20, num_draft_tokens=0, stop=())
    next(rounds)
    model.load_cache(tmp_path / "kv.safetensors")
    with pytest.raises(RuntimeError, match="another request"):
        next(rounds)


def test_a_file_for_which_there_is_no_memory_is_refused_and_nothing_changed(copied, tmp_path, monkeypatch):
    prompt, model = load_golden("e2b").records["short"].prompt, Model.load(copied)
    said(model, prompt)
    model.save_cache(tmp_path / "kv.safetensors")
    tokens_before = list(model._decoder.tokens)

    def fill(*_: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate 1 bytes.")

    monkeypatch.setattr(KVCache, "fill", fill)
    with pytest.raises(CacheRefused, match=r"Unable to allocate.*read again"):
        model.load_cache(tmp_path / "kv.safetensors")
    assert model._decoder.tokens == tokens_before


def test_the_sum_of_a_file_needs_the_memory_of_one_array():
    arrays = {f"layer.{i}": mx.full((500_000,), 257 + i, mx.uint16).view(mx.float16) for i in range(8)}
    mx.eval(arrays)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert kv_file._sum(arrays) == str(sum((2 * i + 1) * 500_000 * (257 + i) for i in range(8)) % 2**32)
    assert mx.get_peak_memory() - before < 2 * arrays["layer.0"].nbytes * 2
