"""Which strategies can be named, and what nodes say about themselves for them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from settings_support import complaints, read, refused

from comfyproxy import plugins
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.types import BackendSpec, Request
from comfyproxy.settings import NodeSettings, Preference

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what installs a package `strange` with strategies, by name."""
    site = tmp_path / "site"
    (site / "strange-1.0.dist-info").mkdir(parents=True)
    (site / "strange-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)

    def install(code: str = "", **points: str) -> None:
        (site / "strange.py").write_text(code)
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (site / "strange-1.0.dist-info" / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{lines}")
        monkeypatch.delitem(sys.modules, "strange", raising=False)

    return install


def of_file(strategy: str) -> str:
    return f"nodes:\n  load_balancing:\n    strategy: {strategy}\n"


@pytest.mark.parametrize("name", plugins.BUILT_IN)
def test_the_built_in_strategies_can_be_named(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, of_file(name)).nodes.load_balancing.strategy == name


def test_a_strategy_of_an_installed_package_can_be_named(tmp_path: Path, install: Install) -> None:
    install("class Odd: rank = print", odd="strange:Odd")
    assert plugins.strategy_names() == [*plugins.BUILT_IN, "odd"]
    assert read(tmp_path, of_file("odd")).nodes.load_balancing.strategy == "odd"
    assert type(plugins.load_strategy("odd")()).__name__ == "Odd"


def test_a_built_in_name_stays_what_it_is_whoever_takes_it_too(tmp_path: Path, install: Install) -> None:
    install("raise RuntimeError", weighted="strange:Odd")
    assert plugins.strategy_names() == [*plugins.BUILT_IN]
    assert read(tmp_path, of_file("weighted")).nodes.load_balancing.strategy == "weighted"
    with pytest.raises(plugins.BadPlugin):
        plugins.load_strategy("weighted")


def test_an_unknown_strategy_is_told_with_the_nearest_and_all_others(tmp_path: Path) -> None:
    known = ", ".join(plugins.BUILT_IN)
    assert complaints(tmp_path, of_file("least-load")) == [
        "my.yaml:3: nodes.load_balancing.strategy: "
        f'there is no strategy "least-load"; did you mean least_loaded? Known are {known}'
    ]
    assert refused(environ={"COMFYPROXY_NODES_LOAD_BALANCING_STRATEGY": "zzz"}) == [
        "COMFYPROXY_NODES_LOAD_BALANCING_STRATEGY: nodes.load_balancing.strategy: "
        f'there is no strategy "zzz"; known are {known}'
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import not_there", "cannot be loaded from strange:Odd: ModuleNotFoundError: No module named 'not_there'"),
        ("1 / 0", "cannot be loaded from strange:Odd: ZeroDivisionError: division by zero"),
        ("class Even: pass", "cannot be loaded from strange:Odd: AttributeError: module 'strange' has no attribute"),
        ("class Odd: pass", 'cannot be used: it has no method "rank"'),
        ("def Odd(): raise KeyError(5)", "cannot be made: KeyError: 5"),
        ("Odd = 1", "cannot be used: strange:Odd is neither a class nor a function"),
    ],
)
def test_a_strategy_that_cannot_be_loaded_is_told_in_a_line(
    tmp_path: Path, install: Install, code: str, said: str
) -> None:
    install(code, odd="strange:Odd")
    (line,) = complaints(tmp_path, of_file("odd"))
    assert line.startswith(f'my.yaml:3: nodes.load_balancing.strategy: the strategy "odd" {said}')


def of_node(metadata: str) -> str:
    return f"nodes:\n  static_nodes:\n    - node_id: a\n      host: a\n      metadata:\n        {metadata}\n"


def test_a_node_says_its_weight_and_its_priority_in_its_metadata(tmp_path: Path) -> None:
    (node,) = read(tmp_path, of_node("{weight: 2.5, priority: 3, gpu: RTX}")).nodes.static_nodes
    assert node.preference == Preference(weight=2.5, priority=3)
    assert node.metadata == {"weight": 2.5, "priority": 3, "gpu": "RTX"}
    assert NodeSettings(node_id="a", host="a").preference == Preference()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("weight: 0", "weight: expected a number above 0, found 0"),
        ("weight: .nan", "weight: expected a number above 0, found .nan"),
        ("weight: '2'", 'weight: expected a number above 0, found the text "2"; write 2.0, without quotes'),
        ("weight: [1]", "weight: expected a number above 0, found a list"),
        ("priority: 0", "priority: expected a whole number from 1 up, found 0"),
        ("priority: 1.5", "priority: expected a whole number from 1 up, found 1.5"),
        ("priority: true", "priority: expected a whole number from 1 up, found true"),
    ],
)
def test_a_weight_or_a_priority_that_is_unusable_is_told_with_its_line(tmp_path: Path, written: str, said: str) -> None:
    assert complaints(tmp_path, of_node(written)) == [f"my.yaml:6: nodes.static_nodes[0].metadata.{said}"]


# What an installed one may do


BROKEN = """
from comfyproxy.core.scheduling.strategies import LeastLoaded

class Raises:
    def rank(self, job, candidates):
        raise RuntimeError("no idea")

class Nothing:
    def rank(self, job, candidates):
        candidates.clear()

class Text:
    def rank(self, job, candidates):
        return candidates[-1].backend

class Objects:
    def rank(self, job, candidates):
        return [[each] for each in candidates]

class Derived(LeastLoaded):
    def key(self, candidate):
        raise RuntimeError("no idea")

class Last(LeastLoaded):
    def rank(self, job, candidates):
        return [candidates[-1].backend]
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    names = ("Raises", "Nothing", "Text", "Objects", "Derived", "Last")
    points = "\n".join(f"{name.lower()} = broken:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{points}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", ["raises", "nothing", "text", "objects", "derived"])
def test_one_that_fails_stops_nobodys_prompts_and_the_log_says_so_now_and_then(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler(plugins.make_strategy(name))
    for backend in "ab":
        scheduler.set_backend(BackendSpec(backend=BackendId(backend), max_concurrent=20))
        scheduler.set_ready(BackendId(backend), True)
    went = []
    for number in range(20):
        scheduler.enqueue(Request(prompt_id=str(number), number=float(number)), 0.0)
        assigned = scheduler.next(0.0)
        assert assigned is not None
        went.append(assigned.backend)
    assert "".join(went) == "ab" * 10
    assert [
        f"({count} times" in record.getMessage() for count, record in zip((1, 2, 4, 8, 16), caplog.records, strict=True)
    ]
    assert scheduler.misplaced(0.0) == []
    assert scheduler.strategy_name == name


@pytest.mark.usefixtures("broken")
def test_one_that_derives_from_a_built_in_one_ranks_in_its_own_way() -> None:
    scheduler = Scheduler(plugins.make_strategy("last"))
    for backend in "abc":
        scheduler.set_backend(BackendSpec(backend=BackendId(backend)))
        scheduler.set_ready(BackendId(backend), True)
    scheduler.enqueue(Request(prompt_id="p"), 0.0)
    assigned = scheduler.next(0.0)
    assert assigned is not None
    assert assigned.backend == "c"
