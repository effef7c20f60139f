"""Captions into the tokens that the reference caption scorer counts, without Java.

The reference is pycocoevalcap's PTBTokenizer: Stanford's tokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`), whose
17 punctuation tokens are then removed. The rules here were written from its answers to made-up lines; tests compare
them with it where Java is present.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mmadapter.tasks.ptb_characters import LETTERS, MARKS, SYMBOLS, character_class

REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Dropped after tokenising. The reference also lists brackets (-LRB- ...), but lower-cased ones do not match its list:
they stay, and so do here."""

_LETTER = f"A-Za-z\\u00AD{character_class(LETTERS)}{character_class(MARKS)}"
L, LD, A, AD = f"[{_LETTER}]", f"[{_LETTER}0-9]", "[A-Za-z]", "[A-Za-z0-9\\u00AD]"
WORD = f"{L}{LD}*(?:[.!?]{L}{LD}*)*"
"""A sentence end without a blank after it parts nothing: "dog.cat" is one token."""
NUMBER = r"(?:[0-9]*(?:[.:,\u00AD\u066B\u066C][0-9]+)+|[0-9]+)"
HYPHEN = "[-\\u058A\\u2010\\u2011]"
APOSTROPHE = "['\\u0092\\u2019]"
TICK = "['`\\u0091\\u0092\\u2018\\u2019]"
ENDING = "(?i:s|m|d|re|ve|ll)"
QUOTES = "[\\u0091-\\u0094\\u2018-\\u201F]"
NOT_IN_URL = r' \t\n\f\r"<>|(){}'
HOST = r"""[^ \t\n\f\r"`'<>|.!?,\-_$(){}\[\]:;=\\^/@0-9]+"""


def _any(words: str) -> str:
    """Alternatives, the longest first: a regular expression takes the first that fits, not the longest."""
    return "|".join(sorted((re.escape(word) for word in words.split()), key=len, reverse=True))


# Abbreviations keep their full stop. In any case of letters:
ABBREVIATIONS = _any(
    "ph.d ed.d adj adm adv al ala alex apr ariz assn assoc asst attys atty aug ave bhd bldg blvd brig bros calif "
    "capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb "
    "fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md "
    "messrs mich minn mlle mme mo mon mont mr mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof "
    "profs pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu "
    "thurs treas tue tues univ va vs vt wed wis wisc wm wyo"
)
# Words of their own in small letters ("miss", "ill"), so only with a capital:
CAPITALISED = "".join(
    f"|{word.capitalize()}|{word.upper()}"
    for word in ["ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash"]
)
NOT_IN_CAPITALS = "".join(
    f"|{word}|{word.capitalize()}"
    for word in ["mfg", "mtg", "ppte", "pptes", "ppty", "pptys", "pte", "ptes", "pty", "ptys"]
)
BEFORE_NUMBERS = _any("art ca fig figs no nos op pp prop")
SENTENCE_STARTS = (
    "about after an as at but earlier he her here however if in it last many more now once one other our she since so "
    "some such that the their then there these they this we what when while yet you"
)
STARTS = "|".join(f"{word[0].upper()}(?i:{word[1:]})" for word in SENTENCE_STARTS.split()) + r"|A|M[RrSs]\."

RULES = tuple(
    re.compile(pattern)
    for pattern in (
        # One word that is two tokens; the first group is the token, what follows it is only looked at.
        "((?i:can))(?i:not)",
        "((?i:gon|wan))(?i:na)",
        "((?i:got))(?i:ta)",
        "((?i:lem|gim))(?i:me)",
        f"((?i:more|mo|no)){APOSTROPHE}[nN]",
        "('[tT])(?i:is|was)",
        f"({A}*[A-MO-Za-mo-z])[nN]{TICK}[tT]",
        f"({LD}+){APOSTROPHE}{ENDING}",
        # Markup: <b>, </b>, <img src="x">, <!-- x -->, &amp;
        r"<(?:[!?][A-Za-z-][^>\r\n]*|/?[A-Za-z][A-Za-z0-9_:.-]*"
        r"""(?: +[A-Za-z][A-Za-z0-9_:.-]*(?: *= *(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_:.-]+))?)* */?)>""",
        "&(?i:amp|lt|gt|quot|apos);",
        # A single letter's full stop ends a sentence only before a word that often starts one.
        rf"({A})\.[ \n]+(?:{STARTS})[ \n]",
        WORD,
        # Words with an apostrophe
        f"{APOSTROPHE}[nN]{APOSTROPHE}|'[nN](?![A-Za-z])|[\\u0092\\u2019][nN]|[lLdDjJ]{APOSTROPHE}",
        f"[yY]{APOSTROPHE}(?=[A-Za-z])|(?i:ol|somethin|dunkin){APOSTROPHE}|{APOSTROPHE}(?i:em|till?|cause)",
        f"{APOSTROPHE}[0-9][0-9](?=\\s)|{APOSTROPHE}[2-9]0s",
        f"(?i:o{APOSTROPHE}clock|cap{APOSTROPHE}n|c'mon|e'er|ev'ry|li'l)",
        f"(?i:c{APOSTROPHE}est)|[nN]{TICK}[tT]",
        f"({APOSTROPHE}{ENDING})[^A-Za-z]",
        "(')[A-Za-z][^ \\t\\n]",
        f"{APOSTROPHE}{ENDING}",
        f"{L}+[aeiouyAEIOUY]{TICK}[aeiouA-Z]{L}*",
        f"[dDoOlL]{TICK}{LD}{LD}+(?:{HYPHEN}{LD}+)*",
        f"[A-HJ-XZn]{TICK}{L}{L}+",
        # Numbers, dates, fractions, money, telephone numbers
        r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}",
        f"[-+]?{NUMBER}",
        r"(?:[0-9]{1,4}[- ])?[0-9]{1,4}(?:/|\u2044)[0-9]{1,4}",
        r"[\u00BC-\u00BE\u2153\u2154]",
        r"[\u207A\u207B\u208A\u208B]?(?:[\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u2080-\u2089]+)",
        r"[A-Z]*\$|[\u00A2-\u00A4\u0080\u20A0\u20AC]",
        r"(?:\([0-9]{2,3}\) ?|(?:\+\+?)?(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}",
        r"(?:\+\+?)?(?:[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        # Addresses, names and tags of the net
        rf"(?i:https?)://[^{NOT_IN_URL}]+[^{NOT_IN_URL}.!?,-]",
        rf"(?:www\.(?:[^{NOT_IN_URL}.!?,]+\.)+[a-zA-Z]{{2,4}}|(?:{HOST}\.)+(?i:com|net|org|edu))"
        rf"(?:/[^{NOT_IN_URL}]+[^{NOT_IN_URL}.!?,-])?",
        rf"<?[A-Za-z0-9][^{NOT_IN_URL}]*@(?:[^{NOT_IN_URL}.]+\.)*[^{NOT_IN_URL}.]+>?",
        f"@[A-Za-z_][A-Za-z_0-9]*|#{L}+",
        # Words with hyphens, underscores, slashes, ampersands
        rf"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-(?:{A}(?:\.{A})+\.|{LD}+))+",
        f"{LD}+(?:{HYPHEN}{LD}+)+",
        f"{LD}+(?:_{LD}+)+(?:{HYPHEN}{LD}+)*",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        f"[0-9]+[A-Za-z0-9\\u00AD{character_class(LETTERS)}]*",
        "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+",
        "[cC]\\+\\+|[cCfF]#|C\\.D\\.s|pro-|anti-|S&P-500",
        # Abbreviations, and any word before a full stop with a comma, colon or semicolon after it
        f"(?:(?i:{ABBREVIATIONS}){CAPITALISED}{NOT_IN_CAPITALS})\\.",
        rf"((?i:{BEFORE_NUMBERS})\.)[ \n]*[0-9]",
        rf"{A}(?:\.{A})*\.",
        rf"((?:{LD}+|{WORD}|[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-{LD}+)+|{LD}+(?:[-_]{LD}+)+)\.)[,;:\u3001]",
        # Faces, punctuation, single signs
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])",
        r"[-^=~<>']_[-^=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)",
        r"\.\.\.+|\u2026|\. \. \.",
        r"--+|[\u2013-\u2015\u0096\u0097]|-",
        r"[?!]+|_+|\\\*|\*+|@+|#+|<<|>>",
        f"''|``|[\"'`\\u2039\\u203A\\u00AB\\u00BB]|{QUOTES}{{1,2}}",
        rf"[.,;:$%&()\[\]{{}}/\\|~^+=<>{character_class(SYMBOLS)}]",
    )
)
"""The longest match is the next token, of equally long ones the first rule's; what is only looked at counts too."""

_PLAIN = re.compile(r"([A-Za-z]+)(?:[.,](?=\n)|,(?= ))?(?=[ \n])")
_SPLIT_WORDS = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])
_KEEPS_STOP = re.compile(f"{A}|(?i:{ABBREVIATIONS}|{BEFORE_NUMBERS}){CAPITALISED}{NOT_IN_CAPITALS}")
_BLANK = re.compile(" +")
_DASHES = re.compile("--+|[\\u2013-\\u2015\\u0096\\u0097\\u00AD]")
_ELLIPSES = re.compile(r"\.\.\.+|\u2026|\. \. \.")
_QUOTES = re.compile(f"{QUOTES}{{1,2}}")
_CLITIC = re.compile(f"(n?)[\\u0092\\u2019](t|{ENDING})", re.IGNORECASE)
_BACK_TICK = re.compile("(n)[\\u0091\\u2018](t)", re.IGNORECASE)
_SPELLED = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''", "\u00ab": "``", "\u00bb": "''", "\u2039": "`",
    "\u203a": "'", "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "\u00a2": "cents", "\u00a3": "#", "\u00a4": "$", "\u0080": "$", "\u20a0": "$", "\u20ac": "$",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
}  # fmt: skip
_QUOTE_SIGNS = {
    0x91: "`", 0x92: "'", 0x93: "``", 0x94: "''", 0x2018: "`", 0x2019: "'", 0x201B: "`", 0x201C: "``", 0x201D: "''",
}  # fmt: skip


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    """The tokens of each caption, lower-cased, punctuation removed, joined by single blanks.

    Whitespace is collapsed first, so that no line separator inside a caption can shift the ones after it. As in the
    reference the captions are read as one text: a full stop after a single letter at a caption's end belongs to the
    letter or not, depending on the next caption's first word.
    """
    if not captions:
        return []
    text = "\n".join(" ".join(caption.split()) for caption in captions)
    lines: list[list[str]] = [[]]
    for token in _tokens(text):
        if token == "\n":
            lines.append([])
        elif token not in REMOVED:
            lines[-1].append(token)
    return [" ".join(line) for line in lines]


def _tokens(text: str) -> Iterator[str]:
    """All tokens of a text in order, "\\n" for each line end; characters that no rule knows are dropped."""
    place = 0
    while place < len(text):
        blank = _BLANK.match(text, place)
        if blank:
            place = blank.end()
            continue
        if text[place] == "\n":
            place += 1
            yield "\n"
            continue
        plain = _PLAIN.match(text, place)  # most of a caption: spares the rules
        if plain and plain[1].lower() not in _SPLIT_WORDS and (plain.end() == plain.end(1) or _stop_parts(plain[0])):
            place = plain.end()
            yield plain[1].lower()
            continue
        end = _longest(text, place)
        if end > place:
            yield _written(text[place:end])
        place = max(end, place + 1)


def _stop_parts(word: str) -> bool:
    """Whether the sign at a plain word's end is a token of its own."""
    return word[-1] == "," or not _KEEPS_STOP.fullmatch(word[:-1])


def _longest(text: str, place: int) -> int:
    """Where the token ends that starts at `place`; `place` itself where there is none."""
    longest, end = place, place
    for rule in RULES:
        match = rule.match(text, place)
        if match and match.end() > longest:
            longest, end = match.end(), match.end(rule.groups)
    return end


def _written(token: str) -> str:
    """A token as the reference prints it: signs in ASCII, brackets by name, no-break blanks inside it, lower case."""
    if token in _SPELLED:
        return _SPELLED[token]
    if _DASHES.fullmatch(token):
        return "--"
    if _ELLIPSES.fullmatch(token):
        return "..."
    if _QUOTES.fullmatch(token):
        return token.translate(_QUOTE_SIGNS)
    token = _BACK_TICK.sub(r"\1`\2", token) if _BACK_TICK.fullmatch(token) else token
    token = _CLITIC.sub(r"\1'\2", token) if _CLITIC.fullmatch(token) else token
    token = token.replace("\u00ad", "").replace("&amp;", "&").replace(" ", "\u00a0").lower()
    return token.replace("(", "-lrb-").replace(")", "-rrb-")
