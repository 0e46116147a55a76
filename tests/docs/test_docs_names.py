"""What the pages name is there: files, headings, options, variables, keys."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from docs_support import PAGES, ROOT, anchors, blocks, rows, spans, text_of

from comfyproxy.cli import main
from comfyproxy.settings import Settings, load
from comfyproxy.settings.kinds import every_key
from comfyproxy.settings.loading import BACKENDS, CONFIG, variables

COMMANDS = ("serve", "check", "simulate", "demo", "plan")
# Of other programs.
STRANGE_OPTIONS = {"--enable-cors-header", "--max-upload-size"}
# Written by users, or by the proxy as it runs.
USERS_FILES = {"my.yaml", "/etc/comfyproxy.yaml"}
SECTIONS = {path.partition(".")[0] for path, _ in every_key(Settings)}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def sources() -> frozenset[str]:
    """Return the path of every file that may be named, as seen from the checkout."""
    folders = ("comfyproxy", "config", "docs", "templates", "tests", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return frozenset(path.relative_to(ROOT).as_posix() for path in [*files, *ROOT.glob("*.*")])


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in spans(page.read_text("utf-8")):
        if re.fullmatch(r"[\w./-]+\.(py|md|yaml|toml|html|cfg)", name) and name not in USERS_FILES:
            assert {name, f"comfyproxy/{name}"} & sources(), name
        elif re.fullmatch(r"(tests|docs|config|core|web|service|store|upstream)(/[\w-]+)*/", name):
            assert (ROOT / name).is_dir() or (ROOT / "comfyproxy" / name).is_dir(), name


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


@each_page
def test_every_option_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {command: options_of(command, capsys) for command in COMMANDS}
    text = page.read_text("utf-8")
    for command, rest in re.findall(r"comfyproxy (serve|check|simulate|demo|plan)\b([^`\n&]*)", text):
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) <= known[command], rest
    for span in spans(text):
        if re.fullmatch(r"--[a-z-]+", span) and span not in STRANGE_OPTIONS:
            assert any(span in options for options in known.values()), span


@pytest.mark.parametrize(
    ("page", "command"),
    [("docs/operations.md", "serve"), ("docs/simulator.md", "simulate"), ("docs/planning.md", "plan")],
)
def test_no_option_is_left_out(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = {row[0].strip("`") for row in rows(text_of(page)) if row[0].startswith("`--")}
    assert told == options_of(command, capsys) - {"--help"}


@each_page
def test_every_environment_variable_exists(page: Path) -> None:
    named = set(re.findall(r"\bCOMFYPROXY_[A-Z_]*[A-Z]", page.read_text("utf-8")))
    assert named <= {*variables(), BACKENDS, CONFIG}


@each_page
def test_every_key_of_the_configuration_exists(page: Path) -> None:
    known = {path for path, _ in every_key(Settings)}
    for span in spans(page.read_text("utf-8")):
        key = span.partition(":")[0]
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in SECTIONS and not key.endswith(".py"):
            assert key in known, span


def test_every_configuration_can_be_used(tmp_path: Path) -> None:
    configurations = [block for block in blocks("yaml") if "groups:" not in block.text]
    assert configurations
    for block in configurations:
        file = tmp_path / "my.yaml"
        file.write_text(block.text, "utf-8")
        assert load(file, environ={}).nodes.static_nodes, block.page


def test_the_alerts_are_yaml() -> None:
    (alerts,) = [yaml.safe_load(block.text) for block in blocks("yaml") if "groups:" in block.text]
    (group,) = alerts["groups"]
    assert all(rule["alert"] and rule["expr"] for rule in group["rules"])


def test_the_variables_of_make_are_those_of_the_makefile() -> None:
    told = {row[0].strip("`") for row in rows(text_of("README.md")) if re.fullmatch(r"`[A-Z_]+`", row[0])}
    assert told
    assert told <= set(re.findall(r"\$\(([A-Z_]+)\)", text_of("Makefile")))


@each_page
def test_no_page_names_a_folder_of_the_machine_it_was_written_on(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|home|root|Users|tmp)\b", page.read_text("utf-8"))
