"""Scores of free text against references: F1 of words (SQuAD), ROUGE-L (Lin 2004), BLEU (sacrebleu).

A language that is written without blanks (Chinese, Japanese, Thai, ...) is compared by characters. No torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

# Scripts that are written without blanks between words: CJK ideographs, kana, Thai, Lao, Myanmar, Khmer.
_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NO_BLANKS += "\U00020000-\U0002fa1f"
_SIGN = re.compile(f"[{_NO_BLANKS}]")
_TOKEN = re.compile(f"[{_NO_BLANKS}]|[^\\W_{_NO_BLANKS}]+")
ARTICLES = ("a", "an", "the")


def words(text: str) -> list[str]:
    """The words in small letters, without punctuation; a character each where the script has no blanks."""
    return _TOKEN.findall(text.casefold())


def normalised_words(text: str) -> list[str]:
    """The words as SQuAD's scorer compares them: small letters, no punctuation, no articles (Rajpurkar et al. 2016).

    Deviates: SQuAD's script takes punctuation out without a blank in its place ("o'clock" is one word there).
    """
    return [word for word in words(text) if word not in ARTICLES]


def word_f1(said: str, references: Sequence[str]) -> float:
    """F1 of the words that an answer and a reference share, the best of the references; 0 to 1.

    Where one of the two has no words at all: 1 if the other has none either, else 0 (as SQuAD 2.0).
    """

    def against(reference: str) -> float:
        own, wanted = normalised_words(said), normalised_words(reference)
        shared = sum((Counter(own) & Counter(wanted)).values())
        if not own or not wanted:
            return float(own == wanted)
        return 2 * shared / (len(own) + len(wanted))

    return max(map(against, references))


def rouge_l(said: str, references: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, the best of the references; 0 to 1 (Lin 2004, with beta 1)."""
    own = words(said)

    def against(reference: str) -> float:
        wanted = words(reference)
        lengths = [0] * (len(wanted) + 1)  # of the longest common subsequence of what was read and wanted[:place]
        for word in own:
            before = 0
            for place, other in enumerate(wanted, 1):
                longest = before + 1 if word == other else max(lengths[place], lengths[place - 1])
                before, lengths[place] = lengths[place], longest
        return 2 * lengths[-1] / (len(own) + len(wanted)) if lengths[-1] else 0.0

    return max(map(against, references))


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float | None, str]:
    """BLEU of all answers together, 0 to 100, and what it counts: "words" (sacrebleu's 13a), or "characters" where most
    letters of the references are of scripts without blanks.

    None in place of the number where the references themselves would get 0: BLEU counts runs of four words, and none of
    them has four.
    """
    from sacrebleu.metrics import BLEU

    told = "".join(text for of_one in references for text in of_one)
    by = "characters" if 2 * len(_SIGN.findall(told)) > sum(sign.isalnum() for sign in told) else "words"
    most = max(map(len, references))
    # sacrebleu wants as many references of every answer; one that comes twice changes nothing
    streams = [[of_one[min(place, len(of_one) - 1)] for of_one in references] for place in range(most)]
    scorer = BLEU(tokenize="char" if by == "characters" else "13a")
    if scorer.corpus_score([max(of_one, key=len) for of_one in references], streams).score == 0:
        return None, by
    return float(scorer.corpus_score(list(said), streams).score), by
