# SPDX-License-Identifier: Apache-2.0
"""What an Open Clip Art drawing shows, in a few English words, read off its metadata.

Titles are empty, or name a theme, an author or the last file of a series; they end in
numbers, hold HTML entities, and a tenth are Italian or French. Where a title says
nothing, the name of the file does, which ends in letters of the author's name.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from rfjax.data.sources.openclipart_words import ENGLISH

# Titles of a collection, not of a drawing.
_UNTRUE = re.compile(
    r"advertising|aiga_symbol_signs|australian maps|.*iconset|balloons-aj|card|"
    r"chess pieces|clipart by .*|diner menu collection|etiquette icons|homes clipart|"
    r".*map elements|map symbols|moons|part of the .* collection.*|pc connectors|"
    r"r16 sibmission|sallite|simple arrows|svg gradient collection.*|svg road signs|"
    r"untitled.*|unsorted|various cliparts|.*[ -]theme|\S+@\S+|gramastar",
    re.IGNORECASE,
)

_RANKS = {"a": "ace", "k": "king", "q": "queen", "j": "jack"}
_SUITS = {"s": "spades", "h": "hearts", "d": "diamonds", "c": "clubs"}

# Path of a drawing in a series -> what it shows; {} is the first group in words.
_SERIES = (
    (r"shapes/stars/star_\d+pt\d+step", "star"),
    (r".*/cards/.*_jk_.", "joker card"),
    (r".*/cardbacks/back\d+", "back of a card"),
    (r".*/(?:uk|usa)_([^/]+?)(?:_historic)?", "flag of {}"),
    (r".*/(?:semaphore|signalflag)_([^/]+)", "{} signal flag"),
    (r".*/pirates/.*", "pirate flag"),
    (r".*/aiga_([^/]+?)_?\d*", "{} sign"),
    (r".*/roadsigns/([^/]+)", "{} road sign"),
    (r".*/gradients/gradient-(.*)", "{} gradient"),
    (r".*/([^/]+?)_-_rpg_map_.*", "{}"),
    (r".*/([^/]+?)_\d_symbol_\d+c?m_.*", "{}"),
    (r".*/icons/.*/gnome-(?:mime|fs|dev)-(?:application-)?(?:x-)?(.*)", "{} icon"),
    (r".*/icons/.*-theme/(?:.*/)?(?:gnome-|stock-|b_)?(.*)", "{} icon"),
    (r".*/bb_(.*)", "{} icon"),
    (r".*/70a\d+", "golden icon"),
    (r".*/plastik_icon_v\d+", "icon"),
    (r".*/contour_(.*)", "{} silhouette"),
    (r".*/smilies/.*", "smiley"),
    (r".*/(?:buddy|head|cm|man)\d+", "head"),
    (r".*/flowchart/fc\d+", "flowchart symbol"),
    (r".*/callouts/([^_/]+).*", "{} speech balloon"),
    (r".*/arrows/arrow[\d_-]+", "arrow"),
    (r".*/jigsaw_(.*)", "{} jigsaw piece"),
    (r".*/([^/]*?)-(?:black|outline|shad)[^/]*", "map of {}"),
    (r".*/\d\d_(?:nomoon|waxing|first|full|waning|last)[^/]*", "moon"),
    (r".*/chesspieces-(.*)", "chess {}"),
    (r".*/connector-(.*)", "{} connector"),
    (r".*/home\d+", "house"),
    (r".*/pinkhome[^/]*", "pink house"),
    (r".*/sport_[^/]*", "person doing sport"),
    (r".*/(?:baloon|clipart_by_nicu_buculei_-_baloon)[^/]*", "balloon"),
    (r".*/people_juliane_krug_[^/]*", "person icon"),
)
_SERIES = tuple((re.compile(pattern), shows) for pattern, shows in _SERIES)
_CARD = re.compile(r".*/cards/\w+/[a-z]+_([shdc])_(\w+)")

_BLACK_AND_WHITE = re.compile(r"(?i)\(?\bb ?(?:&|and|_|n)? ?w\b\)?|\bblack and white\b")
# Words that say where a drawing comes from or which copy it is.
_NOISE = frozenset(
    "aj actual clip clipart drawn drawing etiquette ganson illustration md mount nae "
    "openclipart opencli rpswb selected svg unmount v yet another".split()
)
_MOST_WORDS = 8


def says_nothing(title: str, creator: str) -> bool:
    """Whether a title is empty, a collection's, or the author's name."""
    words = _plain(title)
    return (
        not words or bool(_UNTRUE.fullmatch(title.strip())) or words == _plain(creator)
    )


def subject_of(path: str, title: str, creator: str, keywords: Sequence[str]) -> str:
    """What a drawing shows, in at most eight lower-case English words.

    Args:
      path: of the file in the collection, without ".svg".
      title: as the file has it.
      creator: name of the author.
      keywords: as the file has them.

    Examples:
      >>> subject_of("animals/rana02_architetto_france_01", "Rana02", "Rollandin", ())
      'frog'
      >>> subject_of("food/peach_simple_bw", "R16 sibmission", "Gerald G.", ())
      'black and white peach simple'
      >>> subject_of("a/cards/simple/simple_s_q", "card", "Jose", ())
      'queen of spades card'
    """
    title = repair(title)
    if not says_nothing(title, creator):
        return _finish(title, path, keywords)
    if card := _CARD.fullmatch(path):
        suit, rank = card.groups()
        return f"{_RANKS.get(rank, rank)} of {_SUITS[suit]} card"
    stem = _without_creator(path.rsplit("/", 1)[-1], creator)
    for pattern, shows in _SERIES:
        if match := pattern.fullmatch(path):
            stem = shows.format(*(_clean(group) for group in match.groups()))
            break
    return _finish(stem, path, keywords)


def repair(text: str) -> str:
    """Undoes HTML entities, and UTF-8 that was read as Latin-1.

    >>> repair("L&Atilde;&copy;zard B &amp; W")
    'Lézard B & W'
    """
    text = html.unescape(html.unescape(text))
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _finish(text: str, path: str, keywords: Sequence[str]) -> str:
    """A title or file name in clean English words, with what its place adds."""
    is_black_and_white = bool(_BLACK_AND_WHITE.search(text.replace("_", " ")))
    words = _clean(text)
    words = ENGLISH.get(words, words)
    if "/flags/" in path and not re.search("flag|fleur|pirate|crown|arms", words):
        words = f"flag of {words}"
    elif path.startswith("geography/") and "map" in keywords and "map" not in words:
        words = f"map of {words}"
    words = " ".join(words.split()[:_MOST_WORDS])
    return f"black and white {words}" if is_black_and_white else words


def _clean(text: str) -> str:
    """Lower-case words without numbers at the end, punctuation and noise."""
    text = _BLACK_AND_WHITE.sub(" ", text.replace("_", " "))
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"(?<=[^\W\d])(?=\d)", " ", text)
    text = re.sub(r"['’](?=s\b)", "", text)
    words = [w for w in re.findall(r"\w+", text.lower()) if w not in _NOISE]
    while len(words) > 1 and (words[-1].isdigit() or len(words[-1]) == 1):
        words.pop()
    return " ".join(words)


def _without_creator(stem: str, creator: str) -> str:
    """A file's name without the (cut off) name of its author at the end.

    >>> _without_creator("sheep_head_peterm_01", "peterm")
    'sheep head'
    """
    names = _plain(creator).split()
    words = re.sub(r"[_\W]+", " ", stem).split()
    while len(words) > 1:
        last = words[-1].lower()
        is_name = any(
            n.startswith(last) or (len(n) > 2 and last.startswith(n)) for n in names
        )
        if not (last.isdigit() or is_name or last == "r"):
            break
        words.pop()
    return " ".join(words)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
