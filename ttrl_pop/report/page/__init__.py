"""Runs as one HTML page that needs nothing else: `record` is what is told of a run, `intervals` how far its figures can
be trusted, `charts` draws them, `data` makes rows of all of it, within a budget, and `html` the page.

To add a curve: a line in `charts.CURVES`. To add a section: its rows in `data.page_data`, under a name of their own,
and a function among `SECTIONS` of page.js, with a section of that name in page.html. What a model wrote is a text in
the data, nowhere else, and elements.js puts it into the page as a text.
"""
