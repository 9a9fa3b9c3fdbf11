"""Catalog without the command line: lists, plans, downloads, conversions and removals as a server would do them."""

from __future__ import annotations

import pytest

from mlxmtp.app.conversion import Conversion, ConversionRequest
from mlxmtp.app.models import Catalog, NoDownload
from mlxmtp.errors import LoadError, ModelNotFound, UsageError
from tests.golden import FOLDER
from tests.hub.conftest import Here
from tests.hub.models_to_publish import publish_family, target_files


def catalog(here: Here) -> Catalog:
    return Catalog(here.settings())


def names(here: Here) -> list[str]:
    return [model.name for model in catalog(here).listing().models]


def download(here: Here, name: str) -> int:
    """Bytes that came over the network."""
    plan, arrived = catalog(here).plan_download(name), [0]
    assert not isinstance(plan, NoDownload)
    catalog(here).download(plan, on_bytes=lambda size, fresh: arrived.append(size * fresh))
    return sum(arrived)


def test_a_model_comes_and_goes(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    plan = catalog(here).plan_download(repo)
    assert not isinstance(plan, NoDownload)
    assert [part.role for part in plan.parts] == ["target", "drafter"]
    needed = plan.needs(4096)
    assert needed is not None
    assert needed.drafter > 0
    assert names(here) == ["pocket"]  # a plan writes nothing
    assert download(here, repo) == plan.size
    assert names(here) == ["pocket", repo]
    assert download(here, repo) == 0
    report = catalog(here).report(repo)
    assert (report.repo, report.pinned, report.revision) == (repo, True, plan.parts[0].commit)
    assert report.drafter is not None
    removal = catalog(here).plan_removal(repo)
    assert [folder.name for folder in removal.folders] == [repo, f"{repo}-assistant"]
    catalog(here).remove(removal)
    assert names(here) == ["pocket"]


def test_what_needs_no_download_says_why(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_family(here.hub, "e2b")
    assert catalog(here).plan_download("pocket") == NoDownload("pocket is built in: there is nothing to download.")
    with pytest.raises(UsageError, match="is a folder on this machine"):
        catalog(here).plan_download(str(FOLDER / "e2b" / "target"))
    with pytest.raises(ModelNotFound, match="did you mean"):
        catalog(here).plan_download("e2c")
    download(here, "org/e2b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = catalog(here).plan_download("org/e2b")
    assert isinstance(plan, NoDownload)
    assert "nothing was looked up" in plan.reason


def test_a_conversion_says_what_it_lacks(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    request = ConversionRequest(repo, recipe={"bits": 8})
    assert Conversion(catalog(here), request).to_download == repo
    download(here, repo)
    conversion = Conversion(catalog(here), request)
    assert conversion.to_download is None
    assert Conversion(catalog(here), ConversionRequest(repo, update=True)).to_download == repo
    result = conversion.carry_out(conversion.plan())
    assert result.agreement is not None
    assert (conversion.result_name(), result.folder) == ("e2b-8bit", catalog(here).store.resolve("e2b-8bit").folder)
    with pytest.raises(UsageError, match="exists"):
        Conversion(catalog(here), request)


def test_the_revision_that_was_asked_for_is_converted(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    old = here.hub.publish(repo, {**target_files("e2b"), "README.md": b"old"}, branch="v1")
    for name in (f"{repo}@v1", repo):  # the last one is pinned
        download(here, name)
    plan = Conversion(catalog(here), ConversionRequest(repo, revision=old, update=True)).plan()
    assert plan.parts[0].config.folder.name == old


def test_quantized_weights_are_refused_where_they_are_to_be_converted(here: Here) -> None:
    config = b'"quantization": {"bits": 4, "group_size": 64}, '
    files = target_files("e2b")
    files["config.json"] = files["config.json"].replace(b"{", b"{" + config, 1)
    here.hub.publish("org/small", files)
    assert not isinstance(catalog(here).plan_download("org/small", draft=False), NoDownload)
    with pytest.raises(LoadError, match="org/small is already quantized"):
        catalog(here).plan_download("org/small", draft=False, to_convert=True)
