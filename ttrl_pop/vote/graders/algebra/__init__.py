"""Algebra on answers, for the math grader: `reading` turns a text into one of the `forms`, `comparing` says whether two
are equal.

Everything here runs in the process of `math_worker` alone, and may hang or die there. To add a shape: a class in
`forms`, its spelling in `reading`, its equality in `comparing.equal`; tests/cases/math_equal.json and
math_different.json hold the pairs that it must and must not hold equal.
"""
