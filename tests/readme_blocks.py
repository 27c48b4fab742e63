"""Read the fenced blocks of Markdown pages, and the commands inside them.

A comment above a block, invisible when rendered, sets how its commands are tested:

    <!-- test: slow -->                     run with `-m slow`
    <!-- test: slow setup=run,images -->    prepare files first (see SETUPS in test_readme_commands.py)
    <!-- test: skip (needs a cluster) -->   only parse the commands

Without a comment the block runs in the default suite. A block whose info string has a file name (```yaml my.yaml) is
written to the folder in which the page's commands run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHELL_LANGUAGES = ("bash", "sh", "console")
OTHER_LANGUAGES = ("yaml", "python", "json", "text")
MARKER = re.compile(r"<!-- test: (?P<words>.*?)(?: \((?P<reason>.+)\))? -->")
FENCE = re.compile(r"```(?P<info>.*)")
PROGRAMS = (
    "microdit",
    "microdit-sweep",
    "microdit-report",
    "make",
    "torchrun",
    "srun",
    "pytest",
    "python",
    "git",
    "pip",
)


@dataclass(frozen=True)
class Block:
    """Describe one fenced block of a page."""

    page: Path
    line: int
    language: str
    file_name: str  # "" if the block has none
    text: str
    mode: str = "quick"  # quick | slow | skip
    setups: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict, compare=False)  # named blocks of the page

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return the pages that may have commands: README.md files, and CONTRIBUTING.md."""
    found = [path for path in ROOT.rglob("README.md") if not any(part.startswith(".") for part in _parts(path))]
    return sorted([*found, ROOT / ".github" / "CONTRIBUTING.md"])


def _parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).parts


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: if a marker or a language has no rule, or a command stands outside a fenced block.
    """
    found: list[Block] = []
    mode, setups = "quick", ()
    fence, body = None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{page.relative_to(ROOT)}:{number}"
        if fence is not None:
            if line.strip() == "```":
                language, _, file_name = fence[1].partition(" ")
                if language not in (*SHELL_LANGUAGES, *OTHER_LANGUAGES, ""):
                    raise ValueError(f"{place}: no rule for blocks of {language!r}")
                text = "\n".join(body) + "\n"
                found.append(Block(page, fence[0], language, file_name.strip(), text, mode, setups))
                mode, setups, fence, body = "quick", (), None, []
            else:
                body.append(line)
        elif match := FENCE.match(line):
            fence = (number, match["info"].strip())
        elif line.startswith("<!-- test:"):
            mode, setups = _marker(line, place)
        elif line.startswith("    ") and (words := line.split()) and words[0] in PROGRAMS:
            raise ValueError(f"{place}: a command outside a fenced block is not tested: {line.strip()}")
        elif line.strip() and mode != "quick":
            raise ValueError(f"{place}: the marker above stands before no block")
    files = {block.file_name: block.text for block in found if block.file_name}
    return [Block(**{**vars(block), "files": files}) for block in found]


def _marker(line: str, place: str) -> tuple[str, tuple[str, ...]]:
    match = MARKER.fullmatch(line.strip())
    if not match:
        raise ValueError(f"{place}: not a marker: {line}")
    mode, setups = "quick", ()
    for word in match["words"].split():
        if word in ("slow", "skip"):
            mode = word
        elif word.startswith("setup="):
            setups = tuple(word.removeprefix("setup=").split(","))
        else:
            raise ValueError(f"{place}: no rule for {word!r}")
    if mode == "skip" and not match["reason"]:
        raise ValueError(f"{place}: a skipped block needs a reason in parentheses")
    return mode, setups


def commands(text: str) -> list[list[str]]:
    """Return the commands of shell text as words, without comments and redirections."""
    joined = text.replace("\\\n", " ")
    found: list[list[str]] = []
    for line in joined.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;>")
        lexer.whitespace_split = True
        current: list[str] = []
        redirected = False
        for word in lexer:
            if word in ("&&", "||", "|", ";"):
                found.append(current)
                current = []
            elif word == ">":
                redirected = True
            elif redirected:
                redirected = False
            else:
                current.append(word)
        found.append(current)
    return [words for words in found if words]
