from __future__ import annotations

import fcntl

FIRST = {"reward/mean": 0.25, "costs/cum/all": 0.5}
SECOND = {"reward/mean": 0.75, "costs/cum/all": 1.0}


def cells(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()[1:]]


def test_a_run_is_a_line_with_its_last_step_reward_cost_and_status(shelf, art_command):
    shelf.run("agent-001", FIRST, SECOND)
    (line,) = cells(art_command("runs"))
    assert line[:5] == ["demo/agent-001", "2", "0.750", "1.0000", "finished"]


def test_after_an_evaluation_the_reward_is_that_of_the_last_train_row(shelf, art_command):
    shelf.run("a", FIRST, {"val/reward": 0.9, "costs/cum/all": 2.0})
    (line,) = cells(art_command("runs"))
    assert line[1:4] == ["2", "0.250", "2.0000"]


def test_a_run_without_rewards_or_costs_has_dashes(shelf, art_command):
    shelf.run("bare", {"loss/train": 1.0})
    (line,) = cells(art_command("runs"))
    assert line[1:4] == ["1", "-", "-"]


def test_an_empty_log_is_a_run_too(shelf, art_command):
    shelf.run("empty")
    assert cells(art_command("runs")) == [["demo/empty", "-", "-", "-", "finished", "-"]]


def test_a_log_that_nobody_holds_although_it_says_running_was_killed(shelf, art_command):
    shelf.run("a", FIRST, status="running")
    assert cells(art_command("runs"))[0][4] == "killed"


def test_a_log_that_is_held_is_running(shelf, art_command):
    directory = shelf.run("a", FIRST)
    with (directory / "history.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cells(art_command("runs"))[0][4] == "running"


def test_a_status_that_makes_no_sense_is_unknown(shelf, art_command):
    broken, odd = shelf.run("a", FIRST), shelf.run("b", FIRST)
    (broken / "status.json").write_text('{"status": "fin')
    (odd / "status.json").write_text("[]")
    shelf.run("c", FIRST, status=None)
    assert [line[4] for line in cells(art_command("runs"))[:3]] == ["unknown"] * 3


def test_a_torn_last_line_is_passed_over(shelf, art_command, caplog):
    directory = shelf.run("a", FIRST)
    with (directory / "history.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"seq":2,"st')
    assert cells(art_command("runs"))[0][:2] == ["demo/a", "1"]
    assert "not a row" in caplog.text


def test_history_that_art_wrote_is_read_through_the_former_names(shelf, art_command):
    directory = shelf.run("old", status=None)
    (directory / "history.jsonl").write_text(
        '{"training_step": 3, "recorded_at": "2026-05-01T00:00:00", "train/reward": 0.5,'
        ' "costs/cum/all": 0.1}\n'
        '{"training_step": 4, "recorded_at": "2026-05-01T00:01:00", "train/reward": 0.6}\n'
    )
    (line,) = cells(art_command("runs"))
    assert line[1:5] == ["4", "0.600", "0.1000", "unknown"]


def test_another_directory_can_be_asked_for(shelf, art_command, tmp_path):
    shelf.run("a", FIRST)
    (tmp_path / "else").mkdir()
    printed = art_command("runs", "--dir", str(tmp_path / "else"))
    assert printed == f"no runs in {tmp_path}/else; --dir or ART_DIR names their directory\n"
