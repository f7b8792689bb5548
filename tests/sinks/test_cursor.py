import pytest

from art_core.sinks import cursor as cursors
from art_core.sinks.cursor import Cursor, load_cursor, rows_after, save_cursor


def seqs(rows):
    return [row.seq for row in rows]


def test_a_cursor_is_read_back_as_it_was_saved(tmp_path):
    file = tmp_path / "sinks" / "x.cursor"
    save_cursor(file, Cursor(offset=120, seq=3))
    assert load_cursor(file) == Cursor(offset=120, seq=3)
    save_cursor(file, Cursor(offset=120, seq=3, mark="abc"))
    assert load_cursor(file).mark == "abc"
    assert [f.name for f in file.parent.iterdir()] == ["x.cursor"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "{}", '{"offset": "x", "seq": 1}'])
def test_a_cursor_that_cannot_be_read_stands_at_the_beginning(tmp_path, text):
    file = tmp_path / "x.cursor"
    if text is not None:
        file.write_text(text)
    assert load_cursor(file) == Cursor()


def test_an_offset_before_the_beginning_is_the_beginning(tmp_path):
    (tmp_path / "x.cursor").write_text('{"offset": -5, "seq": 1}')
    assert load_cursor(tmp_path / "x.cursor").offset == 0


def test_rows_come_after_the_cursor_and_move_it(book):
    book.add(3)
    rows, after = rows_after(book.path, Cursor())
    assert seqs(rows) == [1, 2, 3]
    assert after == Cursor(offset=book.path.stat().st_size, seq=3)
    assert rows_after(book.path, after) == ([], after)
    book.add(2)
    rows, after = rows_after(book.path, after)
    assert (seqs(rows), after.seq) == ([4, 5], 5)


def test_rows_come_in_batches(book, monkeypatch):
    monkeypatch.setattr(cursors, "BATCH", 2)
    book.add(5)
    cursor, batches = Cursor(), []
    while (batch := rows_after(book.path, cursor))[0]:
        rows, cursor = batch
        batches.append(seqs(rows))
    assert batches == [[1, 2], [3, 4], [5]]


def test_a_torn_last_line_waits(book):
    book.add(1)
    with book.path.open("ab") as file:
        file.write(b'{"seq": 2, "st')
    rows, after = rows_after(book.path, Cursor())
    assert seqs(rows) == [1]
    assert rows_after(book.path, after) == ([], after)


def test_a_log_that_is_shorter_than_the_cursor_is_read_anew(book):
    """A log that lost its end with the machine goes on with the seqs that were lost."""
    book.add(2)
    ahead = Cursor(offset=book.path.stat().st_size + 500, seq=9)
    rows, after = rows_after(book.path, ahead)
    assert seqs(rows) == [1, 2]
    assert after == Cursor(offset=book.path.stat().st_size, seq=2)


def test_a_cursor_of_another_log_is_read_anew_whatever_its_length(book):
    """A log that was restored, or begun anew, has other rows before the offset."""
    book.add(3, **{"loss/train": 2.0})
    _, after = rows_after(book.path, Cursor())
    other = book.path.read_bytes().replace(b"2.0", b"3.0")
    book.path.write_bytes(other + other)
    assert len(rows_after(book.path, after)[0]) == 6
    book.path.write_bytes(b"x" + other + other)
    assert len(rows_after(book.path, after)[0]) == 5


@pytest.mark.parametrize("size", [1, cursors.MARKED_BYTES, 3 * cursors.MARKED_BYTES])
def test_a_cursor_of_an_earlier_release_is_checked_by_its_seq(book, size):
    book.add(1)
    first = book.path.stat().st_size
    book.add(1, **{"x" * size: 1.0})
    second = book.path.stat().st_size
    for offset, seq, left in (
        (first, 1, [2]),
        (second, 2, []),
        (first, 2, [1, 2]),
        (second, 7, [1, 2]),
    ):
        assert seqs(rows_after(book.path, Cursor(offset=offset, seq=seq))[0]) == left
    assert seqs(rows_after(book.path, Cursor(offset=second - 1, seq=2))[0]) == [1, 2]


def test_a_cursor_after_what_is_no_row_is_read_anew(book):
    book.path.write_text('{"seq": "junk"}\n')
    offset = book.path.stat().st_size
    book.add(1)
    assert seqs(rows_after(book.path, Cursor(offset=offset, seq=1))[0]) == [1]
    assert seqs(rows_after(book.path, Cursor(offset=offset, seq=1, mark="other"))[0]) == [1]


def test_rows_that_the_art_reference_wrote_have_no_seq_and_come_too(book):
    book.path.write_text('{"step": 1, "recorded_at": "2025-01-01T00:00:00", "loss/train": 1}\n' * 2)
    rows, after = rows_after(book.path, Cursor())
    assert seqs(rows) == [0, 0]
    assert rows_after(book.path, after) == ([], after)
