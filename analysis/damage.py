"""Whether a file is whole: every basket or page of a tree is read, as far as it carries what tells damage."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uproot
import xxhash
from uproot.models.TBasket import Model_TBasket
from uproot.source.cursor import Cursor

from analysis.events import open_root, read_generated, reading, tree_key
from analysis.sources import Source

if TYPE_CHECKING:
    from analysis.config import GeneratedSum

AT_ONCE = 32_000_000
"""Bytes that are asked for in one request."""


def check_file(path: str, tree: str, generated: GeneratedSum | None = None) -> None:
    """Read all baskets (TTree) or pages (RNTuple) of a tree, and the sum of generated weights.

    Baskets are decompressed: ZLIB, LZMA and LZ4 carry checksums, while ZSTD and baskets that are not compressed can
    hide damage. Pages are compared with their own checksums, which ROOT writes; those of uproot have none, and are
    decompressed.

    Args:
        path: File or URL.
        tree: Name of the tree.
        generated: Where the sum of generated weights stands.

    Raises:
        UserError: The file is bad (with `damage`), or can't be reached.
    """
    with open_root(path) as file:
        with reading(path, "can't be read"):
            found = file[tree_key(file, path, tree)]
            pieces = list(_pages(found) if hasattr(found, "page_link_list") else _baskets(found))
        for batch in _batches(sorted(pieces, key=lambda piece: (piece.start, piece.name))):
            with reading(path, "can't be read"):
                chunks = file.file.source.chunks([(piece.start, piece.stop) for piece in batch], queue.Queue())
            for piece, chunk in zip(batch, chunks, strict=True):
                with reading(path, f"is damaged in {piece.name}"):
                    piece.check(chunk)
    read_generated(path, generated)


@contextmanager
def blaming(source: Source) -> Iterator[None]:
    """Where reading events fails, say so if it is for a damaged file, rather than what tripped over it.

    Raises:
        UserError: The file is bad; else whatever was raised.
    """
    try:
        yield
    except Exception as error:
        if _met_while_reading(error):
            check_file(source.path, source.tree)
        raise


def _met_while_reading(error: BaseException) -> bool:
    """Whether an error, or one behind it, came out of uproot."""
    reader = Path(uproot.__file__).parent
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        seen.append(each)
        if any(Path(frame.filename).is_relative_to(reader) for frame in traceback.extract_tb(each.__traceback__)):
            return True
        each = each.__cause__ or each.__context__
    return False


@dataclass(frozen=True)
class _Piece:
    """A basket or page: its bytes in the file, what it belongs to, and what raises if it is damaged."""

    start: int
    stop: int
    name: str
    check: Callable[[Any], object]


def _baskets(tree: Any) -> Iterator[_Piece]:
    """Baskets of all branches of a TTree."""
    for branch in tree.itervalues(recursive=True):
        # Small ones stand within the tree itself.
        inside = len(branch.embedded_baskets)
        for number in range(branch.num_baskets - inside):
            start = int(branch.member("fBasketSeek")[number])
            first, last = branch.basket_entry_start_stop(number)
            yield _Piece(
                start,
                start + int(branch.basket_compressed_bytes(number)),
                f"branch {branch.name!r}, entries {first} to {last}",
                partial(_decompress, branch, number, start),
            )


def _decompress(branch: Any, number: int, start: int, chunk: Any) -> None:
    Model_TBasket.read(chunk, Cursor(start), {"basket_num": number}, branch.file, branch.file, branch)


def _pages(ntuple: Any) -> Iterator[_Piece]:
    """Pages of all columns of an RNTuple."""
    names = [ntuple.field_records[column.field_id].field_name for column in ntuple.column_records]
    for number, cluster in enumerate(ntuple.page_link_list):
        for index, (name, column) in enumerate(zip(names, cluster, strict=False)):
            for page in column.pages:
                start = int(page.locator.offset)
                stop = start + int(page.locator.num_bytes) + (_CHECKSUM if page.has_checksum else 0)
                check = _compare if page.has_checksum else partial(_read_column, ntuple, number, index)
                yield _Piece(start, stop, f"field {name!r}, cluster {number}", check)
                if not page.has_checksum:
                    break  # all pages of the column are read with the first


_CHECKSUM = 8
"""Bytes of the checksum behind a page (XXH3, 64 bits, little-endian)."""


def _compare(chunk: Any) -> None:
    chunk.wait()
    content = bytes(chunk.raw_data)
    if xxhash.xxh3_64_intdigest(content[:-_CHECKSUM]) != int.from_bytes(content[-_CHECKSUM:], "little"):
        raise ValueError("the checksum of a page differs")


def _read_column(ntuple: Any, cluster: int, column: int, _chunk: Any) -> None:
    ntuple.read_cluster_pages(cluster, column, ntuple.get_field_metadata(column))


def _batches(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are asked for together, at most `AT_ONCE` bytes where there is more than one."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.stop - piece.start > AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.stop - piece.start
    if batch:
        yield batch
