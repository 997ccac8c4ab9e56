"""Tests of runtime/pages.py."""

import mmap
import re
from pathlib import Path

import pytest

from tensorstow.runtime import memory, pages
from tensorstow.runtime.pages import Pages

MIB = 1 << 20


def _mapping_of(address: int) -> str:
    """What the kernel says of the mapping around an address."""
    text = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            if text:
                return text
            if not int(head[1], 16) <= address < int(head[2], 16):
                continue
        elif not text:
            continue
        text += line + "\n"
    return text


def test_pages_ask_for_large_ones_and_make_no_more_resident_than_was_asked_for() -> None:
    huge = pages.huge_page_nbytes()
    if not huge:
        pytest.skip("this system has no large pages to ask for")
    before = memory.current_rss_nbytes()
    nbytes = 3 * huge + 5 * mmap.PAGESIZE
    one = Pages(nbytes)
    one.populate()
    grown = memory.current_rss_nbytes() - before
    assert (one.address % huge, one.nbytes) == (0, nbytes)
    assert " hg" in _mapping_of(one.address)
    assert " hg" not in _mapping_of(one.address + nbytes - 1)
    assert " nh" in _mapping_of(one.address + nbytes - 1)  # else the system may give large ones unasked
    assert nbytes - MIB / 2 < grown < nbytes + MIB / 2
    one.close()


@pytest.mark.parametrize("huge", [0, 2 * MIB])
@pytest.mark.parametrize("nbytes", [1, 4096, 2 * MIB - 1, 2 * MIB, 5 * MIB + 1])
def test_pages_hold_what_is_written_from_the_first_byte_to_the_last(
    monkeypatch: pytest.MonkeyPatch, huge: int, nbytes: int
) -> None:
    monkeypatch.setattr(pages, "huge_page_nbytes", lambda: huge)
    one = Pages(nbytes)
    one.populate()
    view = one.whole
    assert len(view) == one.nbytes == -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    view[0], view[-1] = 1, 2
    assert (one.whole[0], one.whole[-1], one.address % mmap.PAGESIZE) == (1, 2, 0)
    with pytest.raises(BufferError):
        one.close()
    assert one.closed
    del view
    one.close()
    with pytest.raises(ValueError, match="given back"):
        _ = one.whole


def test_a_kernel_that_cannot_populate_has_each_page_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MADV_POPULATE_WRITE", 9999)
    before = memory.current_rss_nbytes()
    one = Pages(16 * MIB)
    one.populate()
    assert memory.current_rss_nbytes() - before > 15 * MIB
    one.close()
