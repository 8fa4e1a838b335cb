"""Data loading plans: how a site maps a table of its own to what a study's plans expect.

blocks       the records a plan is made of, and their YAML
expression   the small language of `filter` and `derive`
units        conversion between units of measurement, in UCUM notation
stages       a plan against a table's columns: checked, and turned into stages of SQL
table        the stages run over a file

A plan is data, never code: no block can loop, open a file or reach another row than its own,
except for the median that `missing` takes of a column.
"""
