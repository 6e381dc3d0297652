"""What a run shows: contact sheets, curves, the leak judgement, and the page that holds them.

Importing this package is light; ``grids`` needs Pillow and ``html`` Jinja2 (the extra ``train``) once they draw.
"""
