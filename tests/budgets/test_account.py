"""The account of a budget: reservations in a file that processes share."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.budgets.account import BudgetAccount, _begin_in_child
from art_core.budgets.tally import read_tally


@pytest.fixture
def file(tmp_path):
    return tmp_path / "budget.jsonl"


def account_of(file, usd=10.0, **terms):
    return BudgetAccount(art.budget(usd=usd, **terms), file)


def test_a_reservation_counts_until_it_is_settled_and_then_what_was_spent(file):
    account = account_of(file)
    made = account.reserve("call", 4.0)
    assert (account.spent, account.left) == (0.0, 6.0)
    account.settle(made, 1.0)
    assert (account.spent, account.left) == (1.0, 9.0)
    account.settle(made, 1.0)  # again
    assert (account.spent, account.left) == (1.0, 9.0)


def test_what_would_exceed_the_limit_is_refused_with_what_is_left(file):
    account = account_of(file)
    account.settle(account.reserve("judge", 7.0), 7.0)
    account.reserve("call", 1.0)
    with pytest.raises(art.BudgetError) as raised:
        account.reserve("call", 3.0)
    assert str(raised.value) == (
        "call needs up to $3, and $2 of the budget of $10 are left: $7 spent, $1 reserved. "
        "A higher limit goes on from here."
    )
    account.reserve("call", 2.0)
    assert account.left == 0.0


def test_two_accounts_of_a_file_share_the_last_dollar(file):
    first, second = account_of(file), account_of(file)
    first.reserve("call", 9.5)
    with pytest.raises(art.BudgetError, match=r"\$0.5 of the budget"):
        second.reserve("call", 1.0)
    second.reserve("call", 0.5)


def test_threads_never_reserve_more_than_the_limit(file):
    account = account_of(file)

    def take(_):
        try:
            account.reserve("call", 1.0)
        except art.BudgetError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(40))) == 10


def test_an_account_opened_later_goes_on_with_another_limit(file):
    account = account_of(file, usd=1.0)
    account.settle(account.reserve("call", 1.0), 1.0)
    account.close()
    again = account_of(file, usd=2.0)
    again.refresh()
    assert (again.spent, again.left) == (1.0, 1.0)
    tally = read_tally(file)
    assert tally is not None
    assert (tally.limit, tally.spent) == (2.0, 1.0)


def test_what_is_within_a_reservation_draws_from_it(file):
    account = account_of(file)
    step = account.reserve("step", 8.0)
    call = account.reserve("call", 3.0, within=step)
    assert account.tally.reserved == 8.0
    account.settle(call, 2.0)
    assert (account.spent, account.tally.reserved) == (2.0, 6.0)
    account.reserve("call", 8.0, within=step)  # 6 of the step's, 2 of what is left
    assert account.left == 0.0
    account.settle(step, 0.0)
    assert (account.spent, account.tally.reserved) == (2.0, 8.0)


def test_the_calls_of_a_step_stay_below_per_step(file):
    account = account_of(file, per_step=2.0)
    step = account.reserve("step", 2.0)
    account.reserve("call", 1.5, within=step)
    with pytest.raises(art.BudgetError, match=r"\$1.5 of its per_step=\$2"):
        account.reserve("call", 1.0, within=step)
    account.reserve("call", 1.0)


def test_a_row_of_the_log_replaces_what_was_settled_and_reserved(file):
    account = account_of(file)
    step = account.reserve("step", 5.0)
    account.settle(account.reserve("call", 1.0, within=step), 1.0)
    account.note_row("/run", 1, logged=3.0, covered=1.0, settled=[step.id])
    assert (account.spent, account.tally.reserved) == (3.0, 0.0)
    account.note_row("/run", 1, logged=3.0, covered=1.0, settled=[step.id])
    assert account.spent == 3.0
    account.note_row("/run", 0, logged=9.0, covered=0.0, settled=[])  # an older row
    assert account.spent == 3.0


def test_there_is_one_warning_when_most_is_spent(file, caplog):
    account = account_of(file)
    account.settle(account.reserve("call", 8.0), 7.9)
    assert not caplog.records
    account.settle(account.reserve("call", 0.2), 0.2)
    account.settle(account.reserve("call", 0.2), 0.2)
    other = account_of(file)
    other.settle(other.reserve("call", 0.2), 0.2)
    assert [r.getMessage() for r in caplog.records] == ["$8.1 of the budget of $10 are spent"]


def test_two_accounts_that_pass_the_share_together_warn_once(file, caplog):
    first, second = account_of(file), account_of(file)
    mine, other = first.reserve("call", 5.0), second.reserve("call", 5.0)
    first.settle(mine, 5.0)
    second.settle(other, 5.0)
    first.settle(mine, 5.0)  # it has read 10 dollars now, and that the other one warned
    assert len(caplog.records) == 1


def test_a_torn_line_is_dropped(file, caplog):
    account = account_of(file)
    account.reserve("call", 1.0)
    with file.open("ab") as torn:
        torn.write(b'{"reserve":"x-1","us')
    account.reserve("call", 1.0)
    assert account.tally.reserved == 2.0
    assert "torn line of 20 bytes" in caplog.text
    assert account_of(file).refresh().reserved == 2.0


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n"])
def test_a_line_that_is_not_ours_is_an_error_that_quotes_it(file, line):
    file.write_bytes(line)
    with pytest.raises(art.BudgetError, match="has a line that can't be read"):
        account_of(file).reserve("call", 1.0)
    assert read_tally(file) is None


def test_a_file_that_is_deleted_in_use_is_an_error(file):
    account = account_of(file)
    account.reserve("call", 1.0)
    file.unlink()
    with pytest.raises(art.BudgetError, match="was deleted or cut while in use"):
        account.reserve("call", 1.0)


def test_a_full_disk_refuses_a_reservation_and_keeps_one_that_is_settled(file, caplog, monkeypatch):
    account = account_of(file)
    made, write = account.reserve("call", 1.0), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OSError, match="the disk took 5 of"):
        account.reserve("call", 1.0)
    account.settle(made, 0.5)
    account.note_row("/run", 1, 1.0, 0.0, [])
    monkeypatch.undo()
    assert "$1 stay reserved for call" in caplog.text
    assert "row 1 of /run is added when the run is opened again" in caplog.text
    assert (account.spent, account.tally.reserved) == (0.0, 1.0)
    account.settle(made, 0.5)
    assert account_of(file).refresh().spent == 0.5


def test_an_interruption_between_a_line_and_its_sum_loses_nothing(file, monkeypatch):
    account = account_of(file)
    account.reserve("call", 1.0)

    def interrupted(self, entry):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(account.tally), "apply", interrupted)
        account.reserve("call", 2.0)
    assert account.refresh().reserved == 3.0


def test_an_account_without_a_file_lives_in_memory():
    account = account_of(None, usd=1.0)
    account.settle(account.reserve("call", 1.0), 0.25)
    assert (account.spent, account.left) == (0.25, 0.75)
    account.close()
    assert account.costs_of("call").values[0] == 0.25


def test_costs_of_a_kind_are_remembered_by_the_file(file):
    account = account_of(file)
    account.settle(account.reserve("call", 1.0), 0.25)
    account.settle(account.reserve("call", 1.0), 0.0)  # it failed
    assert list(account_of(file).costs_of("call").values) == [0.25]


_FORKED = """
import os, sys
import art_core as art
from art_core.budgets.account import BudgetAccount, _begin_in_child
from pathlib import Path
account = BudgetAccount(art.budget(usd=10), Path(sys.argv[1]))
account.reserve("call", 1.0)
pid = os.fork()
for _ in range(50):
    account.settle(account.reserve("call", 0.01), 0.01)
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
account.reserve("call", 1.0)
print(account.refresh().spent, account.tally.reserved)
"""


def test_a_forked_process_has_numbers_and_a_lock_of_its_own(file):
    command = [sys.executable, "-c", _FORKED, str(file)]
    spent, reserved = subprocess.check_output(command, text=True).split()
    assert float(spent) == pytest.approx(1.0)
    assert float(reserved) == 2.0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.floats(0, 1))))
def test_accounts_of_a_file_agree_with_plain_sums(tmp_path_factory, changes):
    file = tmp_path_factory.mktemp("shared") / "budget.jsonl"
    accounts = [account_of(file, usd=1000.0), account_of(file, usd=1000.0)]
    held, spent = [], 0.0
    for which, place, usd in changes:
        if place < len(held):
            made = held.pop(place)
            accounts[which].settle(made, usd)
            spent += usd
        else:
            held.append(accounts[which].reserve("call", usd))
    for account in accounts:
        tally = account.refresh()
        assert tally.spent == pytest.approx(spent)
        assert tally.reserved == pytest.approx(sum(made.usd for made in held))
        account.close()


def test_a_line_that_is_there_twice_counts_once(file):
    account = account_of(file)
    account.settle(account.reserve("call", 1.0), 1.0)
    file.write_bytes(file.read_bytes() + file.read_bytes().splitlines(keepends=True)[-1])
    assert account_of(file).refresh().spent == 1.0


def test_a_child_begins_with_the_file_and_not_with_its_parent_s_sums(file):
    account = account_of(file)
    account.reserve("call", 1.0)
    first = account.reserve("call", 1.0).id
    account.close()
    _begin_in_child()
    assert account.reserve("call", 1.0).id.split("-")[0] != first.split("-")[0]
    assert account.tally.reserved == 3.0


def test_a_row_is_noted_later_if_the_file_is_gone(file, caplog):
    account = account_of(file)
    account.reserve("call", 1.0)
    file.unlink()
    account.note_row("/run", 1, 1.0, 0.0, [])
    assert "row 1 of /run is added when the run is opened again" in caplog.text
