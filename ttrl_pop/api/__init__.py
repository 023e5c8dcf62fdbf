"""What a script or a notebook calls: `train`, `open`, `vote` and `population`, had from `ttrl_pop` itself.

The first three do what the commands of these names do, by the same functions. To add one, write it in a file here and
name it in `ttrl_pop/__init__.py`.
"""
