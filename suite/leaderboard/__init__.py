"""From records alone to tables and one page; what is not comparable is not ranked together.

``records`` reads and judges, ``ranking`` groups and ranks, ``columns`` says what a table
shows, ``text`` and ``page`` write it.
"""
