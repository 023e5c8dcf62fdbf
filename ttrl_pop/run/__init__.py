"""A run: what it works with (session.py), what it keeps and how it goes on (progress.py), what it has lost (losses.py),
and what it goes by.

What it goes by: labels of each problem over time (history.py), the collapse alarm (collapse.py), and labels that others
than the learning minds elect (labellers.py). survey.py lets every mind answer every problem without learning. The loop
itself is `ttrl_pop.train`; another rule of collapse is one function in `collapse.SIGNS`."""
