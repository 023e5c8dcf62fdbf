"""This project's parts inside of other trainers, one file for each.

None of them is imported but by who asks for it, and the other trainer is an extra of its name. To add one, write it in
a file here, with a test against what is newest of the other side.
"""
