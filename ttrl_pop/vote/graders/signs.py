r"""Signs that are written in several ways, each way beside the one that is compared: Unicode, LaTeX, plain text.

To add a spelling, add it to the table of its sort. A table's right side is what `spelling.clean` leaves of its left.
"""

_GREEK = """
α alpha β beta γ gamma δ delta ε epsilon ζ zeta η eta θ theta ι iota κ kappa λ lambda μ mu ν nu ξ xi π pi ρ rho ς sigma
σ sigma τ tau υ upsilon φ phi χ chi ψ psi ω omega Γ Gamma Δ Delta Θ Theta Λ Lambda Ξ Xi Π Pi Σ Sigma Φ Phi Ψ Psi Ω Omega
ϕ phi ϑ vartheta ϵ epsilon
"""
_LETTERS = iter(_GREEK.split())

UNICODE = {
    # signs of a number
    **dict.fromkeys("−–—‐‑‒﹣", "-"),
    "＋": "+",
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙", r"\cdot "),
    **dict.fromkeys("÷∕⁄", "/"),
    "∗": "*",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "℃": r"^\circ C",
    "℉": r"^\circ F",
    # relations
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("≤⩽≦", r"\le "),
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "≅": r"\cong ",
    "∼": r"\sim ",
    "∝": r"\propto ",
    "∥": r"\parallel ",
    "⊥": r"\perp ",
    "→": r"\to ",
    "⟶": r"\to ",
    "⇒": r"\Rightarrow ",
    "⇔": r"\iff ",
    "↔": r"\leftrightarrow ",
    "∣": "|",
    # sets and logic
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "⊂": r"\subset ",
    "⊆": r"\subseteq ",
    "⊃": r"\supset ",
    "⊇": r"\supseteq ",
    "∖": r"\setminus ",
    "∅": r"\emptyset ",
    "∧": r"\land ",
    "∨": r"\text{ or }",
    "¬": r"\neg ",
    "∀": r"\forall ",
    "∃": r"\exists ",
    "ℝ": r"\mathbb{R}",
    "ℕ": r"\mathbb{N}",
    "ℤ": r"\mathbb{Z}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    # calculus and geometry
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∆": r"\Delta ",
    "∘": r"\circ ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "ℓ": r"\ell ",
    # punctuation
    "…": r"\dots ",
    "⋯": r"\dots ",
    "。": ".",
    "．": ".",
    "，": ",",
    "、": ", ",
    "；": ";",
    "：": ":",
    "∶": ":",
    **dict.fromkeys("【〔［", "["),
    **dict.fromkeys("】〕］", "]"),
    **dict.fromkeys("′’‘", "'"),
    "″": "''",
    **dict.fromkeys("“”„«»「」『』", '"'),
    # Greek letters
    **{letter: rf"\{name} " for letter, name in zip(_LETTERS, _LETTERS, strict=True)},
    "µ": r"\mu ",
    "Ω": r"\Omega ",
}
"""Character → LaTeX or ASCII."""

ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
"""Sign of a root, which has no braces → its command."""

_NOTHING = """
( ) [ ] left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr
"""
_SPACE = """
, ; : > quad qquad enspace thinspace space nobreakspace hfill hfil null displaystyle textstyle scriptstyle
scriptscriptstyle limits nolimits tiny small footnotesize scriptsize normalsize large Large LARGE huge Huge
bf it rm sf tt sc bfseries itshape rmfamily sffamily ttfamily centering
"""
_LOOKS = """
boldsymbol bm underline uline numprint emph ensuremath num fbox framebox textnormal textup textmd textsc mathnormal
pmb bold
"""
COMMANDS = {
    **{rf"\{name}": "" for name in _NOTHING.split()},
    **{rf"\{name}": " " for name in _SPACE.split()},
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac", r"\sfrac", r"\nicefrac", r"\xfrac", r"\flatfrac"), r"\frac"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    r"\ ": " ",
    r"\$": "¤",
    r"\%": "%",
    r"\percent": "%",
    r"\&": "&",
    r"\cr": r"\\",
    # relations
    **dict.fromkeys((r"\geq", r"\geqslant", r"\geqq"), r"\ge"),
    **dict.fromkeys((r"\leq", r"\leqslant", r"\leqq"), r"\le"),
    r"\neq": r"\ne",
    r"\lt": "<",
    r"\gt": ">",
    r"\eq": "=",
    r"\isin": r"\in",
    **dict.fromkeys((r"\rightarrow", r"\longrightarrow"), r"\to"),
    **dict.fromkeys((r"\implies", r"\Longrightarrow"), r"\Rightarrow"),
    **dict.fromkeys((r"\Leftrightarrow", r"\Longleftrightarrow"), r"\iff"),
    # brackets
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lparen": "(",
    r"\rparen": ")",
    **dict.fromkeys((r"\lvert", r"\rvert", r"\vert", r"\mid"), "|"),
    # sets and logic
    **dict.fromkeys((r"\varnothing", r"\emptyset"), r"\emptyset"),
    r"\bigcup": r"\cup",
    r"\bigcap": r"\cap",
    **dict.fromkeys((r"\backslash", r"\smallsetminus"), r"\setminus"),
    **dict.fromkeys((r"\lor", r"\vee"), r"\text{ or }"),
    r"\wedge": r"\land",
    r"\lnot": r"\neg",
    **{rf"\{letter}": rf"\mathbb{{{letter}}}" for letter in "RNZQ"},
    r"\Bbb": r"\mathbb",
    # letters
    r"\varepsilon": r"\epsilon",
    r"\varphi": r"\phi",
    # operations
    **dict.fromkeys((r"\ldots", r"\cdots", r"\dotsc", r"\dotsb", r"\dotso"), r"\dots"),
    r"\cdotp": r"\cdot",
    r"\ast": "*",
    r"\div": "/",
    r"\colon": ":",
    **dict.fromkeys((r"\mod", r"\bmod"), " mod "),
    r"\infin": r"\infty",
    r"\gets": r"\leftarrow",
    **dict.fromkeys((r"\lVert", r"\rVert", r"\Vert"), r"\|"),
    r"\ratio": ":",
    r"\tg": r"\tan",
    r"\ctg": r"\cot",
    r"\arctg": r"\arctan",
    r"\degree": r"^\circ",
    r"\degrees": r"^\circ",
    r"\overrightarrow": r"\vec",
    # currencies
    r"\pounds": "£",
    r"\textsterling": "£",
    r"\euro": "€",
    r"\EUR": "€",
    r"\texteuro": "€",
    r"\yen": "¥",
    r"\textyen": "¥",
    r"\textdollar": "",
}
"""Command → the one that says the same, "" or a space for one that only lays out."""

WRAPPERS = {
    **{rf"\{name}": ("", "") for name in _LOOKS.split()},
    r"\pmatrix": (r"\begin{pmatrix}", r"\end{pmatrix}"),
    r"\bmatrix": (r"\begin{pmatrix}", r"\end{pmatrix}"),
    r"\matrix": (r"\begin{pmatrix}", r"\end{pmatrix}"),
    r"\pmod": ("(mod ", ")"),
    r"\ang": ("", r"^\circ "),
}
"""Command that takes one argument in braces → what stands before and behind the argument in its place."""

MATRICES = ("matrix", "pmatrix", "bmatrix", "smallmatrix", "psmallmatrix", "bsmallmatrix", "array")
"""Environments of one matrix; those of bars and of curly brackets are something else."""
