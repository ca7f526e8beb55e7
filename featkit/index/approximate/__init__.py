"""Approximate search: short codes of most rows of an index, built once and then only read.

codes.py is the codes and their search by a graph or by lists, planning.py the choice among them,
generation.py the record and the files of what was built, searching.py the index type that uses it,
tuning.py how its recall is measured, and building.py what `featkit compact` does.
"""
