"""What a backend lacks for a job."""

import pytest
from graphs_support import catalog_of, loader, prompt

from comfyproxy.core.combos import Combos
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import ANYWHERE, Needs, read
from comfyproxy.core.offers import Lack, Missing, Offer

A, B = BackendId("a"), BackendId("b")
LINUX = catalog_of(CheckpointLoaderSimple=loader(ckpt_name=["x/a.safetensors"]), K=loader(scheduler=["normal"]))
WINDOWS = catalog_of(CheckpointLoaderSimple=loader(ckpt_name=["x\\a.safetensors"]), K=loader(scheduler=["karras"]))


def needs_of(ckpt_name: str, scheduler: str = "normal") -> Needs:
    combos = Combos()
    combos.note(A, LINUX)
    graph = prompt(("CheckpointLoaderSimple", {"ckpt_name": ckpt_name}), ("K", {"scheduler": scheduler}))
    return read(graph, combos).needs


def told(offer: Offer, needs: Needs) -> list[str]:
    missing = offer.missing(needs)
    assert offer.can(needs) is (not missing)
    return [str(each) for each in missing]


@pytest.mark.parametrize("name", ["x/a.safetensors", "x\\a.safetensors"])
def test_a_model_is_there_in_any_spelling(name: str) -> None:
    assert told(Offer(A, catalog=LINUX), needs_of(name)) == []
    assert told(Offer(B, catalog=WINDOWS), needs_of(name, "karras")) == []


def test_what_is_missing_is_named_for_people_and_as_data() -> None:
    needs = needs_of("b.safetensors", "beta")
    offer = Offer(A, catalog=LINUX)
    assert told(offer, needs) == [
        'checkpoint "b.safetensors" (CheckpointLoaderSimple.ckpt_name)',
        'choice "beta" (K.scheduler)',
    ]
    assert offer.missing(needs)[1] == Missing(Lack.CHOICE, "beta", "K", "scheduler")
    assert told(Offer(A, catalog=catalog_of(K=loader())), needs) == ['node class "CheckpointLoaderSimple"']
    assert str(Missing(Lack.CHOICE, "b.pth", "Upscale", "model_name")) == 'model "b.pth" (Upscale.model_name)'


def test_an_input_that_is_no_list_here_takes_anything() -> None:
    offer = Offer(B, catalog=catalog_of(CheckpointLoaderSimple={}, K=loader()))
    assert told(offer, needs_of("nowhere.safetensors", "nonsense")) == []


def test_what_is_not_known_of_a_backend_it_may_have() -> None:
    assert told(Offer(A), needs_of("nowhere.safetensors")) == []


def test_capabilities_narrow_only_where_some_are_declared() -> None:
    needs = Needs(capabilities=frozenset({"video", "upscale"}))
    assert told(Offer(A), needs) == []
    assert told(Offer(A, frozenset({"upscale", "video", "x"}), LINUX), needs) == []
    assert told(Offer(A, frozenset({"upscale"})), needs) == ['capability "video"']
    assert told(Offer(A, frozenset({"upscale"})), ANYWHERE) == []


def test_a_pinned_job_runs_on_no_other() -> None:
    needs = Needs(pinned=B)
    assert told(Offer(B), needs) == []
    assert told(Offer(A), needs) == ['it is not "b"']
