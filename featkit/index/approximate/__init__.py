"""Approximate search: a graph over most rows of an index, built once and then only read.

graph.py is the structure itself, generation.py the record and the files of one that was built,
searching.py the index type that uses it, tuning.py how its recall is measured, and building.py what
`featkit compact` does.
"""
