"""Learn a small byte-pair vocabulary for open_clip's SimpleTokenizer."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from microdit.common.files.atomic import atomic_path

END = "</w>"


def learn_merges(captions: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Return the merges of a byte-pair vocabulary, in the order of learning.

    See Sennrich et al., arXiv 1508.07909, section 3.2. Ties go to the pair that sorts first, so the vocabulary is a
    function of the captions.

    Args:
        captions: texts; only their ASCII words count.
        count: number of merges.

    Returns:
        Pairs of pieces; fewer than `count` if every word has become one piece.
    """
    frequency = Counter(word for caption in captions for word in caption.lower().split() if word.isascii())
    words = {word: [*word[:-1], word[-1] + END] for word in frequency}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in zip(pieces[:-1], pieces[1:], strict=True):
                pairs[pair] += frequency[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merge(pieces, best) for word, pieces in words.items()}
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def vocabulary_size(merges: list[tuple[str, str]]) -> int:
    """Return the number of tokens.

    They are bytes with and without a word's end, merges, and start and end of text.

    Args:
        merges: from `learn_merges`.
    """
    return 2 * 256 + len(merges) + 2


def write_merges(merges: list[tuple[str, str]], path: Path) -> None:
    """Write the gzipped merge list; the same merges give the same bytes.

    Args:
        merges: from `learn_merges`.
        path: the file.
    """
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
