"""Finished runs as pages with pictures: one run alone, or several strategies beside each other.

history.py -> figures.py -> table.py and plots.py -> page.py; trial.py, conduct.py and
comparison.py train what a comparison compares.
"""
