"""Traces in files."""

from pathlib import Path

import pytest

from comfyproxy.planning.trace import BadPlan, TraceJob, read_trace, write_trace

FULL = TraceJob(at_s=1.5, client="anna", model="sdxl.safetensors", kind="portrait", run_s=8.125, priority=2, front=True)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    jobs = [TraceJob(at_s=0, run_s=1), FULL, TraceJob(at_s=2, run_s=1, client="\ud800 é")]
    write_trace(tmp_path / "t.jsonl", jobs)
    assert read_trace(tmp_path / "t.jsonl") == jobs


def test_what_is_as_usual_is_not_written(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", [TraceJob(at_s=0, run_s=1)])
    assert (tmp_path / "t.jsonl").read_text() == '{"at_s": 0, "run_s": 1}\n'


def test_jobs_are_put_in_order_of_time_and_empty_lines_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"at_s": 5, "run_s": 1}\r\n\n{"at_s": 2.5, "run_s": 2}\n')
    assert [job.at_s for job in read_trace(file)] == [2.5, 5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"at_s": 1', "not valid JSON: "),
        ("[1]", 'expected an object as {"at_s": 0, "run_s": 10}, found [1]'),
        ('{"at_s": 1}', "run_s is missing"),
        ('{"at_s": 1, "run": 2}', "run: unknown key; did you mean run_s?"),
        ('{"at_s": -1, "run_s": 2}', "at_s: expected a number of seconds from 0 up, found -1"),
        ('{"at_s": 1, "run_s": 0}', "run_s: expected a number of seconds above 0, found 0"),
        ('{"at_s": 1, "run_s": "2"}', 'run_s: expected a number of seconds above 0, found the text "2"; write 2.0'),
        ('{"at_s": 1, "run_s": 2, "priority": 0.5}', "priority: expected a whole number, found 0.5"),
        ('{"at_s": 1, "run_s": 2, "client": 7}', 'client: expected a text, found 7; write "7", with quotes'),
        ('{"at_s": NaN, "run_s": 2}', "at_s: expected a number of seconds from 0 up, found NaN"),
        ('{"at_s": 1, "run_s": 2, "front": null}', "front: expected true or false, found nothing"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_in_one_line_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(f'{{"at_s": 0, "run_s": 1}}\n{line}\n')
    with pytest.raises(BadPlan) as caught:
        read_trace(file)
    assert str(caught.value).startswith(f"{file}:2: {message}")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"at_s": 0, "run_s": 1, "client": "\xff"}\n')
    with pytest.raises(BadPlan, match=r"t\.jsonl:1: not valid JSON"):
        read_trace(tmp_path / "t.jsonl")


def test_a_trace_without_jobs_and_one_that_is_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadPlan, match=r"empty\.jsonl: there is no job in it"):
        read_trace(tmp_path / "empty.jsonl")
    with pytest.raises(BadPlan, match=r"none\.jsonl: No such file"):
        read_trace(tmp_path / "none.jsonl")
