"""Captions into the tokens that the reference caption scorer counts, without Java.

The reference is pycocoevalcap's PTBTokenizer: Stanford's tokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`), whose
17 punctuation tokens are then removed. The rules here were written from its answers to made-up lines; tests compare
them with it where Java is present.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Dropped after tokenising. The reference also lists brackets (-LRB- ...), but lower-cased ones do not match its list:
they stay, and so do here."""

# How the reference tokenizer sees each character beyond ASCII (basic plane), in hexadecimal ranges. Measured, not
# copied: every character was given to Stanford's PTBTokenizer (CoreNLP 3.4.1) alone, between letters and between
# digits. A character that is in no list is dropped and parts what stands around it, as are all beyond U+FFFF (emoji).
# Code points that Unicode has not assigned are not kept apart.

LETTERS = """
    AA B5 BA C0-D6 D8-F6 F8-2C1 2C6-2D1 2E0-2E4 2EC 2EE 370-374 376-37D 386 388-3F5 3F7-481 48A-527 531-559 561-587
    5D0-5EA 5F0-5F2 620-64A 660-669 66E-66F 671-6D3 6D5 6E5-6E6 6EE-6FC 6FF 710 712-72F 74D-7A5 7B1-7EA 7F4-7F5 7FA
    800-815 81A 824 828 840-858 8A0 8A2-8AC 904-939 93D 950 958-961 966-96F 971-977 979-97F 985-9B9 9BD 9CE 9DC-9E1
    9E6-9F1 A05-A39 A59-A6F A72-A74 A85-AB9 ABD AD0-AE1 AE6-AEF B05-B39 B3D B5C-B61 B66-B6F B71 B83-BB9 BD0 BE6-BEF
    C05-C33 C35-C39 C3D C58-C59 C60-C61 C66-C6F C85-CB9 CBD CDE-CE1 CE6-CF2 D05-D3A D3D D4E D60-D61 D66-D6F D7A-D7F
    D85-DC6 E01-E30 E32-E33 E40-E46 E50-E59 E81-E84 E87-E88 E8A E8D E94-E97 E99-E9F EA1-EA7 EAA-EAB EAD-EB0 EB2-EB3
    EBD-EC6 ED0-F00 F20-F29 F40-F6C F88-F8C 1000-102A 103F-1049 1050-1055 105A-105D 1061 1065-1066 106E-1070
    1075-1081 108E 1090-1099 10A0-10FA 10FC-135A 1380-138F 13A0-13F4 1401-166C 166F-167F 1681-169A 16A0-16EA
    1700-170C 170E-1711 1720-1731 1740-1751 1760-1770 1780-17B3 17D7 17DC 17E0-17E9 1810-1877 1880-18A8 18AA-191C
    1946-19AB 19C1-19C7 19D0-19D9 1A00-1A16 1A20-1A54 1A80-1A99 1AA7 1B05-1B33 1B45-1B4B 1B50-1B59 1B83-1BA0
    1BAE-1BE5 1C00-1C23 1C40-1C7D 1CE9-1CEC 1CEE-1CF1 1CF5-1CF6 1D00-1DBF 1E00-1FBC 1FBE 1FC2-1FCC 1FD0-1FDB
    1FE0-1FEC 1FF2-1FFC 2071 207F 2090-209C 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2139
    213C-213F 2145-2149 214E 2183-2184 2C00-2C2E 2C30-2C5E 2C60-2CE4 2CEB-2CEE 2CF2-2CF3 2D00-2D6F 2D80-2DDE 2E2F
    3005-3006 3031-3035 303B-303C 3041-3096 309D-309F 30A1-30FA 30FC-312D 3131-318E 31A0-31BA 31F0-31FF 3400-4DB5
    4E00-9FCC A000-A48C A4D0-A4FD A500-A60C A610-A66E A67F-A697 A6A0-A6E5 A717-A71F A722-A788 A78B-A78E A790-A793
    A7A0-A7AA A7F8-A801 A803-A805 A807-A80A A80C-A822 A840-A873 A882-A8B3 A8D0-A8D9 A8F2-A8F7 A8FB A900-A925
    A930-A946 A960-A97C A984-A9B2 A9CF-A9D9 AA00-AA28 AA40-AA42 AA44-AA4B AA50-AA59 AA60-AA76 AA7A AA80-AAAF AAB1
    AAB5-AAB6 AAB9-AABD AAC0 AAC2-AADD AAE0-AAEA AAF2-AAF4 AB01-AB2E ABC0-ABE2 ABF0-FB1D FB1F-FB28 FB2A-FBB1
    FBD3-FD3D FD50-FDC7 FDF0-FDFB FE70-FEFC FF10-FF19 FF21-FF3A FF41-FF5A FF66-FFDC
"""
"""Join letters and digits into one word; hexadecimal ranges."""

MARKS = """
    2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F 591-5BD 5BF 5C1-5C2 5C4-5C5 5C7
    615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C 7A6-7B0 7EB-7F3 900-903 93C 93E-94E 951-955 962-963
    981-983 9BC 9BE-9CD 9D7 9E2-9E3 A01-A03 A3C-A4F A81-A83 ABC ABE-ACF B82 BBE-BCD C01-C03 C3E-C56 D3E-D48 E31
    E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD
"""
"""Join letters, not digits: modifiers and combining signs."""

SYMBOLS = """
    A1 A5-A9 AC AE-B4 B6-B9 BF D7 F7 37E 387 589 5BE 5C0 5C3 5C6 5F3-603 606-60C 614 61B 61E-61F 66A 66D 6D4 700-70D
    7F6-7F8 964-965 E3F E4F 1FBD 2016-2017 201A 201E-2023 2030-2038 203B 203E-2042 2044 2070 2074-207E 2080-208E
    20A4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129 212E 213A-213B 2140-2144 214A-214D
    214F 2155-215E 2190-2BFF 3001-3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65 FFE0-FFE1 FFE5-FFE6
"""
"""A token of its own."""


def character_class(ranges: str) -> str:
    """The inside of a regular expression's [...] for a list of hexadecimal ranges."""
    return "".join("-".join(f"\\u{int(end, 16):04X}" for end in part.split("-")) for part in ranges.split())


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

# Most of a caption, sparing the rules (and most of the time): ASCII words, but for those that are two tokens.
_PLAIN = re.compile(r"(?!(?i:cannot|gonna|wanna|gotta|lemme|gimme)[ \n])[A-Za-z]+(?=[ \n])")
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
        if text[place] in " \n":
            if text[place] == "\n":
                yield "\n"
            place += 1
        elif plain := _PLAIN.match(text, place):
            yield plain[0].lower()
            place = plain.end()
        else:
            longest, end = place, place
            for rule in RULES:
                match = rule.match(text, place)
                if match and match.end() > longest:
                    longest, end = match.end(), match.end(rule.groups)
            if end > place:
                yield _written(text[place:end])
            place = max(end, place + 1)


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
