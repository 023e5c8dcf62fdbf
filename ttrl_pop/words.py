"""Words that name an answer or a choice, by language. A language more is a line more in these tables."""

import re
from collections.abc import Iterator, Sequence

ANSWER = {
    "en": ("answer", "ans"),
    "zh": ("答案", "答", "回答"),
    "ja": ("答え", "こたえ", "正解"),
    "ko": ("정답", "답변", "답", "해답"),
    "es": ("respuesta",),
    "fr": ("réponse", "reponse"),
    "de": ("antwort", "endantwort", "ergebnis", "endergebnis"),
    "pt": ("resposta",),
    "it": ("risposta",),
    "nl": ("antwoord", "eindantwoord"),
    "sv": ("svar", "slutsvar"),
    "fi": ("vastaus",),
    "pl": ("odpowiedź", "odpowiedz"),
    "cs": ("odpověď",),
    "hu": ("válasz",),
    "ro": ("răspuns", "răspunsul"),
    "ru": ("ответ",),
    "uk": ("відповідь",),
    "el": ("απάντηση",),
    "tr": ("cevap", "yanıt"),
    "ar": ("الجواب", "جواب", "الإجابة", "الاجابة", "إجابة"),
    "fa": ("پاسخ",),
    "he": ("תשובה", "התשובה"),
    "hi": ("उत्तर", "जवाब"),
    "bn": ("উত্তর",),
    "vi": ("đáp án", "đáp số", "câu trả lời", "trả lời"),
    "id": ("jawaban", "jawapan"),
    "th": ("คำตอบ",),
}
"""Nouns for an answer."""

BEFORE = {
    "en": (
        *("so", "thus", "hence", "therefore", "and", "then", "the", "my", "your", "our", "its"),
        *("final", "correct", "right", "best", "overall", "exact", "numerical", "numeric", "short", "simplified"),
        *("integer", "decimal", "approximate", "predicted", "chosen", "selected", "proposed", "ultimate", "actual"),
        *(
            "complete",
            "full",
            "direct",
            "brief",
            "definitive",
            "revised",
            "corrected",
            "updated",
            "simplest",
            "one-word",
        ),
    ),
    "zh": ("所以", "因此", "故", "综上", "最终", "最後", "最后", "最終", "正确", "正確", "本题", "的"),
    "ja": ("最終的な", "最終", "よって", "したがって"),
    "ko": ("최종적인", "최종", "따라서"),
    "es": ("la", "mi", "por lo tanto", "final"),
    "fr": ("la", "ma", "donc", "bonne"),
    "de": ("die", "meine", "also", "endgültige", "finale", "richtige"),
    "pt": ("a", "minha", "portanto"),
    "it": ("la", "mia", "quindi"),
    "nl": ("het", "mijn", "dus", "definitieve", "uiteindelijke", "juiste"),
    "sv": ("slutligt", "slutgiltigt"),
    "fi": ("lopullinen",),
    "pl": ("ostateczna", "końcowa", "poprawna"),
    "cs": ("konečná",),
    "hu": ("a", "végső"),
    "ru": ("итак", "окончательный", "итоговый", "правильный", "конечный", "мой"),
    "uk": ("остаточна", "кінцева"),
    "el": ("η", "τελική"),
    "tr": ("nihai", "son", "doğru"),
    "he": ("לכן",),
    "hi": ("अंतिम", "अन्तिम", "सही", "अतः"),
    "bn": ("চূড়ান্ত",),
    "vi": ("vậy",),
}
"""Words that may stand before the noun."""

AFTER = {
    "es": ("final", "correcta"),
    "fr": ("finale", "correcte"),
    "pt": ("final", "correta"),
    "it": ("finale", "corretta"),
    "ro": ("final",),
    "ar": ("النهائي", "النهائية", "الصحيح", "الصحيحة"),
    "fa": ("نهایی",),
    "he": ("הסופית",),
    "vi": ("cuối cùng", "đúng"),
    "id": ("akhir", "akhirnya", "yang benar"),
    "th": ("สุดท้าย",),
}
"""Words that may stand behind it."""

IS = {
    "en": ("is", "equals", "would be", "will be", "should be", "must be"),
    "zh": ("是", "为", "為", "等于"),
    "ja": ("は",),
    "ko": ("은", "는"),
    "es": ("es",),
    "fr": ("est",),
    "de": ("ist", "lautet"),
    "pt": ("é",),
    "it": ("è",),
    "nl": ("is",),
    "pl": ("to",),
    "vi": ("là",),
    "id": ("adalah",),
    "th": ("คือ",),
    "ar": ("هو", "هي"),
}
"""Verbs between the noun and the answer."""

SURELY = (
    *("therefore", "thus", "hence", "then", "clearly", "indeed", "definitely", "obviously", "simply", "likely"),
    "most likely",
)
"""Adverbs behind such a verb."""

POLITE = ("です", "でした", "である", "となります", "になります", "입니다", "이다", "이에요", "예요", "ครับ", "ค่ะ")
"""Verbs behind the answer, where the language puts them there."""

CHOICE = {
    "en": ("option", "choice", "letter", "alternative"),
    "zh": ("选项", "選項", "选择", "選擇", "选", "選"),
    "ja": ("選択肢",),
    "ko": ("선택지", "보기"),
    "es": ("opción", "opcion", "alternativa"),
    "fr": ("choix", "option"),
    "de": ("option", "auswahl"),
    "pt": ("opção", "alternativa"),
    "it": ("opzione",),
    "nl": ("optie",),
    "ru": ("вариант",),
    "tr": ("seçenek",),
    "vi": ("lựa chọn", "phương án"),
    "id": ("pilihan", "opsi"),
}
"""Nouns for one choice of a question."""

PICK = ("choose", "select", "pick", "choosing", "selecting", "go with", "选择", "選擇", "选", "選")
"""Verbs before the choice that is taken."""

NEVER = ("not", "never", "cannot", "不", "不能")
"""What denies such a verb, before it; `don't` and its like do too."""

CORRECT = (
    *("correct", "right", "true", "the answer", "the final", "the correct", "the right", "the best"),
    *("our answer", "my answer"),
)
"""What is said of the choice that is taken, behind `is`."""

WRONG = ("is not", "isn't", "is wrong", "is incorrect", "is false", "cannot", "can't", "are not", "was not")
"""What is said of a choice that is not taken."""

DOUBT = (
    *("not", "never", "neither", "nor", "either", "no", "doubt", "doubtful", "unlikely", "unclear", "if", "whether"),
    *("unless", "suppose", "supposing", "assume", "assuming", "were", "might", "may", "could", "only when", "wrong"),
    *("false", "incorrect", "untrue"),
)
"""What takes back that a choice is right, before it in its clause."""

JOIN = ("and", "but", "while", "whereas", "because", "since", "then", "which means")
"""Words that begin another clause."""

CLAIM = ("assertion", "reason", "premise", "hypothesis", "lemma", "theorem", "event", "point", "set", "angle")
"""Nouns before a letter that is the name of something else than a choice."""

VERDICT = ("true", "false", "correct", "incorrect", "wrong", "right")
"""What is said of each of several statements."""

RATHER = ("rather than", "instead of", "and not", "but not")
"""Words between the choice that is taken and one that is not."""

AND = ("and", "or", "und", "oder", "y", "o", "et", "ou", "и", "или", "和", "或", "及", "与", "as well as")
"""Words between one choice and another."""

REASON = (
    *("because", "since", "due to", "which is", "which means", "see above", "from above"),
    *("as shown", "as required", "as expected", "as desired", "as requested", "as stated"),
    *("as computed", "as calculated"),
    *("as found", "as above", "as we", "as it", "as the", "as can", "as a result"),
    *("porque", "ya que", "parce que", "weil", "perché", "poiché", "потому что", "так как", "因为", "因為", "由于"),
)
"""Words that begin a reason behind the answer, after a comma, a dash or a bracket."""

PLAIN_REASON = ("because", "porque", "parce que", "perché", "weil", "потому что", "因为", "因為")
"""Words of a reason that begin one without a mark before it."""

CONSEQUENCE = ("so", "thus", "hence", "therefore", "所以", "因此")
"""Words that begin a remark behind a number and a comma; behind an equation the answer may follow them."""

GLOSS = (
    *("approximately", "approx", "about", "roughly", "rounded", "i.e", "that is", "namely", "exactly", "≈", "~", "="),
    *("see", "from", "by", "using", "after", "this", "it is", "checked", "verified", "correct", "obtained", "computed"),
    *("calculated", "found", "to the nearest", "in total", "或约", "约", "即"),
)
"""What begins another form of the answer, in brackets behind it."""

SENTENCE = (
    *("I hope", "I am", "I'm", "Hope this", "Hope that", "Hope it", "This ", "That is", "These are", "It is"),
    *("It's", "Because", "Since", "Therefore", "Thus", "Hence", "As shown", "As required"),
    *("So the", "So it", "We have"),
    *("We get", "We can", "Let me", "Let's", "Note ", "Note:", "Thank you", "Thanks", "Please", "If you", "The answer"),
    *("The final answer", "Explanation:", "Reason:", "Check:", "Verification:", "In conclusion", "Q.E.D"),
    *("希望", "因为", "因為", "由于", "所以", "因此", "这是"),
)
"""What begins a sentence about the answer, behind it; written as it stands there."""


def words_of(*tables: dict[str, tuple[str, ...]] | tuple[str, ...]) -> list[str]:
    """All words of tables, the longer ones first."""
    words = {word for table in tables for word in (sum(table.values(), ()) if isinstance(table, dict) else table)}
    return sorted(words, key=lambda word: (-len(word), word))


def any_of(*tables: dict[str, tuple[str, ...]] | tuple[str, ...]) -> str:
    """A pattern of the words of tables, the longer ones first."""
    return "|".join(map(re.escape, words_of(*tables)))


def lines_with(words: Sequence[str], lines: Sequence[str]) -> Iterator[int]:
    """Indices of the lines that hold one of these words, from the last one: a pattern is tried on few lines then."""
    whole = "\n".join(lines).lower()
    present = [word for word in words if word in whole]
    for index in range(len(lines) - 1 if present else -1, -1, -1):
        line = lines[index].lower()
        if any(word in line for word in present):
            yield index


_GAP = r"[ \t*_,，]*+"
NAMED = rf"(?:(?:{any_of(BEFORE)}){_GAP}){{0,5}}(?:{any_of(ANSWER)})(?:{_GAP}(?:{any_of(AFTER)})){{0,2}}"
"""A pattern of the noun for an answer with the words around it."""
WORD_END = "(?:(?<![A-Za-zÀ-ÿ])|(?![A-Za-zÀ-ÿ]))"
"""A pattern of the place behind a word: a Latin one ends there, one of another script may go on."""
IS_WORD = rf"(?:{any_of(IS)}){WORD_END}(?:[ ](?:{any_of(SURELY)})(?![a-z]),?)?+"
"""A pattern of a verb between the noun and the answer."""
