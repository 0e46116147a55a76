"""The mailboxes: what a client finds when it is back, and what bounds them."""

import json
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.service.mailbox import LATEST_ONLY, STORY, Mailboxes


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Box:
    """Mailboxes with few words for tests."""

    clock: Clock = field(default_factory=Clock)
    max_clients: int = 10
    max_messages: int = 100
    max_bytes: int = 80_000
    mailboxes: Mailboxes = field(init=False)

    def __post_init__(self) -> None:
        self.mailboxes = Mailboxes(
            clock=self.clock,
            max_clients=self.max_clients,
            max_messages=self.max_messages,
            max_bytes=self.max_bytes,
            max_age_s=60,
        )

    def keep(self, event: str, what: object = None, *, client: str = "c", prompt: str | None = "p") -> None:
        self.mailboxes.keep(client, json.dumps([event, what]), event=event, prompt_id=prompt)

    def take(self, client: str = "c") -> list[tuple[str, object]]:
        events = self.mailboxes.take(client)
        return [(event, what) for event, what in (json.loads(kept.message) for kept in events)]


def test_a_whole_prompt_is_told_in_order_with_the_last_word_of_its_progress() -> None:
    box = Box()
    box.keep("execution_start")
    box.keep("execution_cached")
    for node in ("1", "2"):
        box.keep("progress_state", node)
        box.keep("executing", node)
        for step in range(3):
            box.keep("progress", step)
        box.keep("executed", node)
    box.keep("execution_success")
    box.keep("executing", None)
    assert box.take() == [
        ("execution_start", None),
        ("execution_cached", None),
        ("executed", "1"),
        ("progress_state", "2"),
        ("progress", 2),
        ("executed", "2"),
        ("execution_success", None),
        ("executing", None),
    ]
    assert box.take() == []


def test_each_prompt_keeps_its_own_progress() -> None:
    box = Box()
    box.keep("executing", "1", prompt="a")
    box.keep("executing", "1", prompt="b")
    box.keep("executing", None, prompt="a")
    assert box.take() == [("executing", "1"), ("executing", None)]


def test_what_is_true_only_now_is_not_kept() -> None:
    box = Box()
    for event in ("status", "logs", "feature_flags"):
        box.keep(event)
    assert len(box.mailboxes) == 0


def test_events_of_custom_nodes_make_room_for_results() -> None:
    box = Box(max_messages=3)
    box.keep("executed", 1)
    box.keep("some.node", 1)
    box.keep("some.node", 2)
    box.keep("executed", 2)
    assert box.take() == [("executed", 1), ("some.node", 2), ("executed", 2)]


def test_among_results_the_oldest_go_first() -> None:
    box = Box(max_messages=2)
    for number in range(4):
        box.keep("executed", number)
    assert box.take() == [("executed", 2), ("executed", 3)]


def test_a_loud_client_loses_its_own_events_and_nobody_elses() -> None:
    box = Box(max_bytes=800)
    box.keep("executed", "mine", client="quiet")
    for _ in range(20):
        box.keep("some.node", "x" * 60, client="loud")
    box.keep("executed", "x" * 500, client="loud")  # more than its share by itself
    assert box.take("quiet") == [("executed", "mine")]
    assert box.take("loud") == [("some.node", "x" * 60)]
    assert box.mailboxes.bytes_kept == 0


def test_of_too_many_clients_the_one_longest_without_news_is_forgotten() -> None:
    box = Box(max_clients=2)
    box.keep("executed", 1, client="a")
    box.keep("executed", 1, client="b")
    box.keep("executed", 2, client="a")
    box.keep("executed", 1, client="c")
    assert [len(box.take(client)) for client in "abc"] == [2, 0, 1]


def test_an_old_mailbox_is_forgotten_as_a_whole() -> None:
    box = Box()
    box.keep("execution_start")
    box.clock.now_s = 50
    box.keep("executed")
    box.clock.now_s = 105
    box.keep("executed", client="other")
    assert len(box.mailboxes) == 2
    box.clock.now_s = 111
    assert box.take() == []
    assert len(box.take("other")) == 1


def test_a_client_can_be_forgotten() -> None:
    box = Box()
    box.keep("executed")
    box.mailboxes.forget("c")
    box.mailboxes.forget("c")
    assert box.take() == []
    assert box.mailboxes.bytes_kept == 0


events = st.sampled_from([*sorted(STORY), "some.node", "status"])


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), events, st.sampled_from(["p", "q"]), st.integers(0, 60)), max_size=80)
)
def test_whatever_comes_the_mailboxes_are_bounded_and_ordered(steps: list[tuple[str, str, str, int]]) -> None:
    box = Box(max_clients=3, max_messages=5, max_bytes=1000)
    for serial, (client, event, prompt, size) in enumerate(steps):
        box.keep(event, f"{serial:04} {prompt}" + "x" * size, client=client, prompt=prompt)
        assert len(box.mailboxes) <= 3
        assert box.mailboxes.bytes_kept <= 1000
    for client in "abcd":
        kept = box.take(client)
        assert len(kept) <= 5
        assert [str(what) for _, what in kept] == sorted(str(what) for _, what in kept)
        latest = [(event, str(what)[5]) for event, what in kept if event in LATEST_ONLY]
        assert len(latest) == len(set(latest))
    assert box.mailboxes.bytes_kept == 0
