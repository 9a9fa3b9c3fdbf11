"""A hub that is not to be trusted: whatever it calls files and contents, nothing comes to lie outside the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.errors import DownloadError
from mlxmtp.hub.client import look_up
from tests.hub.conftest import Here
from tests.hub.hub_server import Handler, blob_id, sha256
from tests.hub.models_to_publish import target_files

EVIL = b"echo owned\n" * 2000  # large enough to be named by sha256


def files_below(folder: Path) -> dict[Path, bytes]:
    return {item: item.read_bytes() for item in folder.rglob("*") if item.is_file()}


NAMES = [
    "../x", "../../../../x", "a/../../x", "a/..", "..", ".", "./x", "a/./x", "/x", "/etc/passwd", "//x", "a//x", "a/",
    "", "a\\x", "..\\x", "x\0", None, 7, ["x"],
]  # fmt: skip
HASHES = [
    "../../../x", "/x", "..", "", "0" * 39, "0" * 41, "0" * 63, "g" * 40, "A" * 40, "0" * 40 + "\n", "0/" * 20, 7,
    ["x"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "values"),
    [("rfilename", NAMES), ("sha", [*HASHES, None]), ("blobId", HASHES), ("sha256", [*HASHES, None])],
)
def test_what_is_no_name_or_no_hash_is_refused(
    here: Here, field: str, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here.hub.publish("org/evil", {"config.json": b"{}", "large.bin": EVIL})
    plain, wrong = Handler._json, list[Any]()

    def answer(handler: Handler, value: Any, headers: dict[str, str] | None = None) -> None:
        small, large = value["siblings"]
        tables = {"rfilename": small, "sha": value, "blobId": small, "sha256": large["lfs"]}
        tables[field][field] = wrong[-1]
        plain(handler, value, headers)

    monkeypatch.setattr(Handler, "_json", answer)
    for one in values:
        wrong.append(one)
        with pytest.raises(DownloadError, match="does not answer like the Hugging Face hub"):
            look_up("org/evil")


def test_a_pull_writes_nothing_outside_the_cache(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.folder / ".zshrc").write_text("# mine\n")
    outside = files_below(here.folder)
    names = [f"additional_chat_templates/{'../' * depth}.zshrc" for depth in range(4, 10)]  # one of them is the home's
    here.hub.publish("org/evil", {**target_files("e2b"), **dict.fromkeys(names, EVIL)})
    plain = Handler._route

    def route(handler: Handler, path: str, token: str | None) -> None:
        if path.endswith(".zshrc"):  # a client may ask for it by a path without the dots
            handler._content(EVIL, {"ETag": f'"{sha256(EVIL)}"'})
        else:
            plain(handler, path, token)

    monkeypatch.setattr(Handler, "_route", route)
    code, _, err = here.call("pull", "org/evil")
    assert {path: content for path, content in files_below(here.folder).items() if path.name == ".zshrc"} == outside
    assert code == 1
    assert "does not answer like the Hugging Face hub" in err
    assert files_below(here.folder) == outside


def test_names_that_only_look_strange_are_taken(here: Here) -> None:
    names = ["a/b/c.json", "..a", "a..", "a/..b/...", ".hidden", "ü 中.txt", "a b", "-x", "a:b"]
    here.hub.publish("org/odd", {name: name.encode() for name in names} | {"large.bin": EVIL})
    found = look_up("org/odd")
    assert {*found.files} == {*names, "large.bin"}
    assert found.files["large.bin"].etag == sha256(EVIL) == hashlib.sha256(EVIL).hexdigest()
    assert found.files["a b"].etag == blob_id(b"a b")
